"""Scoring on the graph that OpenVINO GenAI serves: paged attention, the same cache type and properties.

The exported model is stateful: one padded batch, one cache a layer. Before it serves it, GenAI rewrites it to
paged attention, where sequences of any length lie end to end and keys and values live in blocks. We apply the
same public transformation and drive the result ourselves. So every logit comes from the kernels that serve,
keys and values are read back from a cache of the served type, and there is no padding: 1.0-1.1 times the
stateful graph's tokens a second on 20-token items, 1.5-1.9 times on sections of 128 (f32, bf16 and u8 caches;
2 cores with AVX512-BF16).

The head of the model runs only where a target is: a Gather on the hidden states is put before the last
MatMul.

Sequences are fed in chunks: a quantized cache is requantized as it grows, and a serving scheduler feeds
chunks too.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops
from openvino._offline_transformations import paged_attention_transformation

from tasks.engines.protocol import EngineError, EngineUnavailable, ScoreRequest, TokenScores
from tasks.engines.target_scores import batches_by_tokens, score_logits

MAX_LOGIT_ROWS = (
    512  # rows of full logits held at once when a caller asks for them: 100 MB at a vocabulary of 49,152
)
_ELEMENTWISE = ("Convert", "Add", "Multiply", "Divide", "Tanh", "Clamp", "Reshape", "Unsqueeze", "Squeeze")


class PagedScorer:
    """A compiled scoring graph and its own small KV cache."""

    def __init__(
        self,
        model_xml: Path,
        properties: dict[str, Any],
        kv_cache: str,
        *,
        chunk_tokens: int,
        batch_tokens: int,
    ) -> None:
        """Compile the graph.

        Args:
            model_xml: the stateful IR.
            properties: plugin properties, those of the serving pipeline.
            kv_cache: the cache type asked for; what was compiled must be it.
            chunk_tokens: tokens of each sequence fed at once; 0: all.
            batch_tokens: tokens of all sequences of a batch.

        Raises:
            EngineUnavailable: the plugin refuses the properties or compiled another cache type.
        """
        self._chunk_tokens = chunk_tokens
        self._batch_tokens = batch_tokens
        core = ov.Core()
        model = core.read_model(model_xml)
        paged_attention_transformation(model)
        _gather_before_head(model)
        try:
            compiled = core.compile_model(model, "CPU", properties)
        except RuntimeError as error:
            raise EngineUnavailable(
                f"OpenVINO refuses {properties}: {last_line(error)}; choose another kv_cache or compute"
            ) from error
        self._caches = {
            port.get_any_name(): (
                port.get_element_type(),
                [d.get_length() if d.is_static else 0 for d in port.partial_shape],
            )
            for port in compiled.inputs
            if port.get_any_name().startswith(("key_cache.", "value_cache."))
        }
        kinds = {kind.to_string() for kind, _ in self._caches.values()}
        if kinds != {kv_cache}:
            raise EngineUnavailable(
                f"kv_cache: {kv_cache} was asked for, OpenVINO compiled {', '.join(sorted(kinds))}; choose "
                "that instead"
            )
        self._block_tokens: int = self._caches["value_cache.0"][1][2]
        self._request = compiled.create_infer_request()
        self._blocks = 0

    @property
    def block_bytes(self) -> int:
        """Bytes of one block of the KV cache, keys and values of all layers, scales included."""
        return sum(int(np.prod(shape[1:])) * kind.bitwidth // 8 for kind, shape in self._caches.values())

    @property
    def cache_bytes(self) -> int:
        """Bytes of the KV cache held now."""
        return self._blocks * self.block_bytes

    def score(self, requests: Iterable[ScoreRequest], *, with_logits: bool) -> Iterator[TokenScores]:
        """Yield the scores of each request, in order; a batch at a time is in flight."""
        limit = MAX_LOGIT_ROWS if with_logits else None
        for batch in batches_by_tokens(requests, batch_tokens=self._batch_tokens, max_targets=limit):
            yield from self._score_batch(batch, with_logits)

    def _score_batch(self, batch: Sequence[ScoreRequest], with_logits: bool) -> list[TokenScores]:
        fed = [np.array(r.context + r.targets[:-1], np.int64) for r in batch]
        self._reserve(sum(self._blocks_of(len(ids)) for ids in fed))
        first_block = np.cumsum([0] + [self._blocks_of(len(ids)) for ids in fed])
        longest = max(len(ids) for ids in fed)
        chunk = self._chunk_tokens or longest
        parts: list[list[TokenScores]] = [[] for _ in batch]
        for start in range(0, longest, chunk):
            active = [i for i, ids in enumerate(fed) if len(ids) > start]
            pieces = [fed[i][start : start + chunk] for i in active]
            begins = np.cumsum([0] + [len(piece) for piece in pieces])
            wanted = [
                np.arange(max(len(batch[i].context) - 1 - start, 0), len(piece))
                for i, piece in zip(active, pieces, strict=True)
            ]
            rows = np.concatenate([begin + rows for begin, rows in zip(begins, wanted, strict=False)])
            logits = self._infer(pieces, begins, first_block[active], start, rows)
            taken = 0
            for i, positions in zip(active, wanted, strict=True):
                if len(positions):
                    offset = start + 1 - len(batch[i].context)
                    targets = np.array(batch[i].targets, np.int64)[positions + offset]
                    part = logits[taken : taken + len(positions)]
                    parts[i].append(score_logits(part, targets, keep=with_logits))
                    taken += len(positions)
        return [_joined(pieces, len(r.targets)) for pieces, r in zip(parts, batch, strict=True)]

    def _infer(
        self,
        pieces: Sequence[NDArray[np.int64]],
        begins: NDArray[np.int64],
        first_block: NDArray[np.int64],
        start: int,
        rows: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """Feed a chunk of each sequence, at positions from `start`; the logits of `rows`, shape (rows, V)."""
        ends = [start + len(piece) for piece in pieces]
        blocks = [
            np.arange(first, first + self._blocks_of(end))
            for first, end in zip(first_block, ends, strict=True)
        ]
        feed = {
            "input_ids": np.concatenate(pieces),
            "position_ids": np.concatenate([np.arange(start, end) for end in ends]),
            "past_lens": np.full(len(pieces), start, np.int32),
            "subsequence_begins": begins.astype(np.int32),
            "block_indices": np.concatenate(blocks).astype(np.int32),
            "block_indices_begins": np.cumsum([0] + [len(block) for block in blocks]).astype(np.int32),
            "max_context_len": np.array(max(ends), np.int32),
            "target_rows": rows if len(rows) else np.zeros(1, np.int64),
        }
        try:
            self._request.infer(feed, share_inputs=True)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed while scoring {len(pieces)} sequences: {error}") from error
        logits: NDArray[np.float32] = self._request.get_tensor("logits").data
        return logits.reshape(-1, logits.shape[-1])[: len(rows)]

    def _blocks_of(self, tokens: int) -> int:
        return -(-tokens // self._block_tokens)

    def _reserve(self, blocks: int) -> None:
        if blocks > self._blocks:
            for name, (kind, shape) in self._caches.items():
                self._request.set_tensor(name, ov.Tensor(kind, [blocks, *shape[1:]]))
            self._blocks = blocks


def last_line(error: RuntimeError) -> str:
    """What OpenVINO says at the end of a message that begins with its own source lines."""
    return str(error).strip().splitlines()[-1]


def _joined(parts: Sequence[TokenScores], count: int) -> TokenScores:
    logprobs = np.concatenate([part.logprobs for part in parts])
    if len(logprobs) != count:
        raise EngineError(f"{len(logprobs)} scores came back for {count} targets")
    kept = [part.logits for part in parts if part.logits is not None]
    return TokenScores(
        logprobs, np.concatenate([part.is_argmax for part in parts]), np.concatenate(kept) if kept else None
    )


def _gather_before_head(model: Any) -> None:
    """Let the last MatMul (hidden states to logits) run on the rows of a new input `target_rows` only."""
    node = (
        next(r for r in model.get_results() if "logits" in r.input_value(0).get_names())
        .input_value(0)
        .get_node()
    )
    while node.get_type_name() in _ELEMENTWISE:
        node = node.input_value(0).get_node()
    if node.get_type_name() != "MatMul":
        raise EngineError(
            f"the logits of this model come from {node.get_type_name()}, not from a MatMul: cannot score it"
        )
    hidden = node.input_value(0)
    width = hidden.get_partial_shape()[-1].get_length()
    rows = ops.parameter([-1], np.int64, name="target_rows")
    rows.output(0).get_tensor().set_names({"target_rows"})
    flat = ops.reshape(hidden, ops.constant(np.array([-1, width], np.int64)), False)
    node.input(0).replace_source_output(ops.gather(flat, rows, ops.constant(np.int64(0))).output(0))
    model.add_parameters([rows])
    model.validate_nodes_and_infer_types()
