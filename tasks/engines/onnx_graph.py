"""One ONNX Runtime session that scores and serves: the exported graph, its output head at chosen rows only.

Before the session is made, a Gather on the hidden states is put before the head, so that logits exist only
where a token is scored or picked: at a vocabulary of 49,152 the head is a fifth of the demo model's
arithmetic and nearly all of its activations.

Keys and values are kept in f32, or as signed integers of 8 or 4 bits with a scale a channel, which the graph's attention then
writes and reads: the scales are those of the artifact's calibration text. Attention reads what the cache holds in every pass, a
prompt's own tokens too, so that pieces change nothing.

GroupQueryAttention on the CPU sets three rules: padding stands right; tokens of a sequence that has a past
are fed alone (batch of one), or one token of each sequence; and a cache that is given as past and present
at once is extended in place.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from tasks.engines.adapter_weights import Factors
from tasks.engines.onnx_adapters import Feeds, add_adapter_inputs, feeds_of
from tasks.engines.onnx_names import FUSED_PARTS
from tasks.engines.protocol import EngineError, EngineUnavailable

MODEL = "model.onnx"
CACHE_RANGES = "kv_ranges.safetensors"
CacheBits = Literal[32, 8, 4]
# The element of the cache, one of uint8 holding two values.
_STORED: dict[CacheBits, tuple[type[np.generic], Any]] = {
    32: (np.float32, ir.DataType.FLOAT),
    8: (np.int8, ir.DataType.INT8),
    4: (np.uint8, ir.DataType.UINT8),
}
_KEY_SCALE, _VALUE_SCALE = 12, 13  # inputs of GroupQueryAttention
_SMALLEST_RANGE = 1e-6  # of a channel that is always zero
# ONNX Runtime's exceptions have no base of their own (1.31).
_ORT_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    *(kind for kind in vars(ort_state).values() if isinstance(kind, type) and issubclass(kind, Exception)),
)


class OnnxGraph:
    """A session on `folder`, and the shape of its KV cache.

    Attributes:
        layers: key and value tensors of the cache, two a layer.
        kv_heads: heads of each.
        head_dim: f32 words that a head keeps of a token's keys or values. The cache is f32 to all who copy it; what the
            words hold (four integers of 8 bits each, or eight of 4) is known here only.
    """

    def __init__(
        self,
        folder: Path,
        threads: int,
        *,
        heads: int,
        kv_heads: int,
        head_dim: int,
        cache_bits: CacheBits = 32,
        adapters: Mapping[str, Mapping[str, Factors]] = {},
    ) -> None:
        """Load the graph; it computes without an adapter until `use_adapter`.

        Raises:
            EngineUnavailable: ONNX Runtime cannot load it, it is no decoder with a KV cache, or the artifact has no
                ranges for a cache of `cache_bits`, or it does not have the layers of an adapter.
        """
        _check_cache(folder, head_dim, cache_bits)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # errors are raised; the logger would print them once more
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        try:
            model = ir.load(folder / MODEL)
            if cache_bits != 32:
                _quantize_cache(model.graph, folder / CACHE_RANGES, cache_bits)
            counts = zip(FUSED_PARTS, (heads, kv_heads, kv_heads), strict=True)
            widths = {part: count * head_dim for part, count in counts}
            products = add_adapter_inputs(model.graph, adapters, widths)
            graph = _with_head_at_rows(model)
            self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except EngineUnavailable:
            raise
        except (*_ORT_ERRORS, OSError, DecodeError) as error:
            raise EngineUnavailable(
                f"ONNX Runtime cannot load {MODEL}: {error}; build the artifact again"
            ) from error
        inputs = {i.name for i in self._session.get_inputs()}
        self._past = sorted(name for name in inputs if name.startswith("past_key_values."))
        self._present = [name.replace("past_key_values", "present") for name in self._past]
        self.layers = len(self._past)
        self._adapters: dict[str | None, Feeds] = {None: feeds_of(products, {})}
        for name, factors in adapters.items():
            self._adapters[name] = feeds_of(products, factors)
        self._adapter = self._adapters[None]
        known = {"input_ids", "attention_mask", "target_rows", *self._past, *self._adapter}
        others = sorted(inputs - known)
        if others or not self._past:
            raise EngineUnavailable(
                f"{MODEL} has {self.layers} past_key_values and the inputs {others}; only decoders with a KV "
                "cache and fused rotary embedding are served here; use engine: openvino"
            )
        self.kv_heads, self.head_dim = kv_heads, head_dim * cache_bits // 32
        self._stored = _STORED[cache_bits][0]

    @property
    def cache_bytes_a_token(self) -> int:
        """Bytes of keys and values of one token."""
        return self.layers * self.kv_heads * self.head_dim * 4

    def use_adapter(self, name: str | None) -> None:
        """Compute with an adapter from the next call on, or without one; a `Decoder` keeps what it was made with."""
        self._adapter = self._adapters[name]

    def feed(
        self,
        sequences: Sequence[Sequence[int]],
        rows: NDArray[np.int64],
        past: Sequence[NDArray[np.float32]] | None = None,
        *,
        keep: bool = False,
    ) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
        """Feed whole prompts, or the next piece of a single sequence.

        Args:
            sequences: token ids, right-padded here to the longest, T.
            rows: positions in the flattened (B * T) tokens whose logits are wanted; may be empty.
            past: keys and values of the single sequence so far, each (1, kv_heads, P, head_dim).
            keep: return keys and values too.

        Returns:
            Logits (len(rows), V), and keys and values (B, kv_heads, P + T, head_dim), empty unless `keep`.

        Raises:
            EngineError: ONNX Runtime failed.
        """
        width = max(len(s) for s in sequences)
        begin = past[0].shape[2] if past else 0
        ids_BT = np.zeros((len(sequences), width), np.int64)
        mask_BS = np.zeros((len(sequences), begin + width), np.int64)
        for row, sequence in enumerate(sequences):
            ids_BT[row, : len(sequence)] = sequence
            mask_BS[row, : begin + len(sequence)] = 1
        empty = np.zeros((len(sequences), self.kv_heads, 0, self.head_dim), np.float32)
        feeds = {
            "input_ids": ids_BT,
            "attention_mask": mask_BS,
            "target_rows": rows if len(rows) else np.zeros(1, np.int64),
            **self._adapter,
            **{
                name: layer.view(self._stored)
                for name, layer in zip(self._past, past or [empty] * self.layers, strict=True)
            },
        }
        try:
            logits, *present = self._session.run(["logits", *(self._present if keep else [])], feeds)
        except _ORT_ERRORS as error:
            raise EngineError(f"ONNX Runtime failed on {ids_BT.shape} tokens: {error}") from error
        return logits[: len(rows)], [layer.view(np.float32) for layer in present]

    def decoder(self, cache: NDArray[np.float32], active: int) -> "Decoder":
        """One-token steps of the first slots of `cache`, shape (layers, slots, kv_heads, S, head_dim)."""
        layers = cache[:, :active].view(self._stored)
        return Decoder(self._session, self._past, self._present, layers, self._adapter)

    def close(self) -> None:
        """Release the session."""
        self._session = None


class Decoder:
    """Steps of a fixed set of slots; keys and values are written into the caller's cache, in place."""

    def __init__(
        self,
        session: Any,
        past: Sequence[str],
        present: Sequence[str],
        cache: NDArray[Any],
        adapter: Feeds,
    ) -> None:
        """Bind the cache once; the bindings hold as long as the set of slots does not change."""
        self._session = session
        self._cache, self._adapter = cache, adapter  # the binding keeps their addresses only
        self._binding = session.io_binding()
        for past_name, present_name, layer in zip(past, present, cache, strict=True):
            place = ("cpu", 0, layer.dtype.type, layer.shape, layer.ctypes.data)
            self._binding.bind_input(past_name, *place)
            self._binding.bind_output(present_name, *place)
        for name, factor in adapter.items():
            self._binding.bind_cpu_input(name, factor)
        self._binding.bind_cpu_input("target_rows", np.arange(cache.shape[1]))
        self._binding.bind_output("logits")

    def step(self, tokens: Sequence[int], lengths: Sequence[int]) -> NDArray[np.float32]:
        """Feed one token of each slot.

        Args:
            tokens: the token of each slot.
            lengths: tokens in each slot's cache before this step.

        Returns:
            Logits, shape (slots, V).

        Raises:
            EngineError: ONNX Runtime failed.
        """
        mask_BS = (np.arange(max(lengths) + 1) <= np.array(lengths)[:, None]).astype(np.int64)
        self._binding.bind_cpu_input("input_ids", np.array(tokens, np.int64)[:, None])
        self._binding.bind_cpu_input("attention_mask", mask_BS)
        try:
            self._session.run_with_iobinding(self._binding)
        except _ORT_ERRORS as error:
            raise EngineError(f"ONNX Runtime failed on a step of {len(tokens)} requests: {error}") from error
        logits: NDArray[np.float32] = self._binding.get_outputs()[-1].numpy()
        return logits


def _check_cache(folder: Path, head_dim: int, bits: CacheBits) -> None:
    if bits != 32 and not (folder / CACHE_RANGES).is_file():
        raise EngineUnavailable(
            f"the artifact has no {CACHE_RANGES}, from which a KV cache of {bits} bits takes its scales; build it with "
            "calibration text, or use kv_cache: f32"
        )
    if head_dim * bits % 32:
        raise EngineUnavailable(
            f"the heads are {head_dim} wide; a KV cache of {bits} bits needs a multiple of {32 // bits}; use kv_cache: f32"
        )


def _quantize_cache(graph: Any, ranges: Path, bits: CacheBits) -> None:
    """Let every attention keep keys and values as integers of `bits`, with the scales of `ranges`.

    Attributes and inputs are those of com.microsoft.GroupQueryAttention; the CPU kernel of ONNX Runtime 1.31 has them
    (pull requests 28576 and 28578).
    """
    from safetensors.numpy import load_file

    largest = load_file(ranges)
    for value in (*graph.inputs, *graph.outputs):
        if value.name.startswith(("past_key_values.", "present.")):
            value.type = ir.TensorType(_STORED[bits][1])
    for node in graph:
        if node.op_type != "GroupQueryAttention":
            continue
        node.resize_inputs(max(len(node.inputs), _VALUE_SCALE + 1))
        for kind, output, place in (("key", 1, _KEY_SCALE), ("value", 2, _VALUE_SCALE)):
            name = node.outputs[output].name.removeprefix("present.")
            step = np.maximum(largest[name], _SMALLEST_RANGE).reshape(-1) / (2 ** (bits - 1) - 1)
            scale = ir.Value(name=f"{name}.scale", const_value=ir.tensor(step.astype(np.float32)))
            graph.initializers[scale.name] = scale
            node.replace_input_with(place, scale)
            node.attributes.add(ir.AttrString(f"{kind[0]}_quant_type", "PER_CHANNEL"))
        node.attributes.add(ir.AttrInt64("kv_cache_bit_width", bits))


def _with_head_at_rows(model: Any) -> bytes:
    """The serialized graph, weights outside, with an input `target_rows` and logits of shape (rows, V)."""
    graph = model.graph
    logits = next((o for o in graph.outputs if o.name == "logits"), None)
    if logits is None or logits.producer().op_type not in ("MatMul", "MatMulNBits"):
        raise EngineUnavailable(f"the logits of {MODEL} do not come from a MatMul; build the artifact again")
    head = logits.producer()
    hidden = head.inputs[0]
    rows = ir.Value(name="target_rows", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["rows"]))
    width = ir.Value(name="flat_hidden", const_value=ir.tensor(np.array([-1, hidden.shape[-1]], np.int64)))
    graph.initializers["flat_hidden"] = width
    graph.inputs.append(rows)
    flat = ir.Node("", "Reshape", [hidden, width])
    chosen = ir.Node("", "Gather", [flat.outputs[0], rows], [ir.AttrInt64("axis", 0)])
    graph.insert_before(head, [flat, chosen])
    head.replace_input_with(0, chosen.outputs[0])
    logits.shape = ir.Shape(["rows", logits.shape[-1]])
    serialized: bytes = ir.to_proto(model).SerializeToString()
    return serialized
