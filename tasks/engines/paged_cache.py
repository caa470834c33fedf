"""The KV cache of a scorer: blocks in memory of our own, so that a sequence can go on from another one's."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from tasks.engines.protocol import EngineUnavailable


class PagedCache:
    """Keys and values of all layers, in blocks of `block_tokens` tokens, in the type that was compiled."""

    def __init__(self, compiled: Any, request: Any, kv_cache: str) -> None:
        """Find the cache inputs of a graph under paged attention; nothing is reserved yet.

        Args:
            compiled: the graph.
            request: its infer request, which will read and write the blocks.
            kv_cache: the type asked for.

        Raises:
            EngineUnavailable: another type was compiled.
        """
        ports = {port.get_any_name(): port for port in compiled.inputs}
        self._layers = {
            name: (port.get_element_type(), [d.get_length() for d in list(port.partial_shape)[1:]])
            for name, port in ports.items()
            if name.startswith(("key_cache.", "value_cache."))
        }
        kinds = {kind.to_string() for kind, _ in self._layers.values()}
        if kinds != {kv_cache}:
            raise EngineUnavailable(
                f"kv_cache: {kv_cache} was asked for, OpenVINO compiled {', '.join(sorted(kinds))}; choose "
                "that instead"
            )
        self._request = request
        self._bytes: dict[str, NDArray[np.uint8]] = {}
        self.block_tokens: int = self._layers["value_cache.0"][1][1]
        self.blocks = 0

    @property
    def block_bytes(self) -> int:
        """Bytes of one block, keys and values of all layers, scales included."""
        return sum(_bytes(kind, shape) for kind, shape in self._layers.values())

    def blocks_of(self, tokens: int) -> int:
        """Blocks that so many tokens take."""
        return -(-tokens // self.block_tokens)

    def reserve(self, blocks: int) -> None:
        """Have at least so many blocks; what the present ones hold is lost when more are needed."""
        if blocks <= self.blocks:
            return
        for name, (kind, shape) in self._layers.items():
            self._bytes[name] = np.zeros((blocks, _bytes(kind, shape)), np.uint8)
            tensor = ov.Tensor(self._bytes[name].reshape(-1), ov.Shape([blocks, *shape]), kind)
            self._request.set_tensor(name, tensor)
        self.blocks = blocks

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, (from, to), with their scales."""
        if pairs:
            sources, targets = np.array(pairs).T
            for held in self._bytes.values():
                held[targets] = held[sources]


def _bytes(kind: Any, shape: Sequence[int]) -> int:
    bits: int = int(np.prod(shape)) * kind.bitwidth
    return bits // 8
