"""ONNX Runtime on the CPU: scoring and continuous batching in one session: what is scored is what is served.

Arithmetic is f32; so is the KV cache, or it holds integers of 8 (u8) or 4 bits (u4), signed here and scaled by the channel. The
weights are those of the artifact. Graphs with rounded weights turn activations into int8 inside their linear layers, as the
artifact says (tasks/compression/onnx_rounding.py). Under activations: int8_dynamic (tasks/compression/onnx_activations.py) all rows
of a batch share one scale, so that what a request gets depends on its neighbours.

With rounded weights the kernel for a single row of activations rounds otherwise than the one for two and more.
Scoring and batched decoding use the latter, bit for bit the same; one stream alone uses the former: 0.004 (int8)
and 0.011 (int4) nats from it on the demo model, and as far from f32 (0.0071 against 0.0069; 0.47 against 0.46).
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from configs.engine import EngineSettings
from tasks.engines.adapter_weights import read_adapter
from tasks.engines.freed_memory import return_freed_memory
from tasks.engines.onnx_graph import CacheBits, OnnxGraph
from tasks.engines.protocol import (
    EngineError,
    EngineMemory,
    EngineUnavailable,
    Generation,
    GenerationRequest,
    ScoreRequest,
    TokenScores,
)
from tasks.engines.slot_batching import SlotBatch
from tasks.engines.target_scores import batches_of_groups, score_logits
from tasks.store.artifact import Artifact

CACHE_BITS: dict[str, CacheBits] = {"f32": 32, "u8": 8, "u4": 4}
MAX_LOGIT_ROWS = 512  # rows of logits held at once: 100 MB at a vocabulary of 49,152
SORTED_BATCHES = 8  # requests are sorted by length within so many batches, which leaves little padding
BRANCH_TOKENS = (
    16  # a continuation fed alone behind its context costs about so many tokens more than in a batch
)


class OnnxRuntimeEngine:
    """One ONNX graph in one session."""

    def __init__(
        self,
        artifact: Artifact,
        settings: EngineSettings,
        *,
        adapters: Mapping[str, Path],
        chunk_tokens: int,
        batch_tokens: int,
    ) -> None:
        """Use `open`, which checks the settings first."""
        config = json.loads((artifact.folder / "genai_config.json").read_text(encoding="utf-8"))["model"]
        self.settings = settings
        self.vocab_size = int(config["vocab_size"])
        self._stop = frozenset(config["eos_token_id"])
        self._chunk_tokens = chunk_tokens or batch_tokens
        self._batch_tokens = batch_tokens
        self._weights_bytes = (artifact.folder / "model.onnx.data").stat().st_size
        self._cache_bytes = 0
        heads = config["decoder"]
        self._graph: OnnxGraph | None = OnnxGraph(
            artifact.folder,
            settings.own_threads,
            heads=heads["num_attention_heads"],
            kv_heads=heads["num_key_value_heads"],
            head_dim=heads["head_size"],
            cache_bits=CACHE_BITS[settings.kv_cache],
            adapters={name: read_adapter(folder) for name, folder in adapters.items()},
        )

    @classmethod
    def open(
        cls,
        artifact: Artifact,
        settings: EngineSettings,
        *,
        adapters: Mapping[str, Path] = {},
        chunk_tokens: int = 64,
        batch_tokens: int = 2048,
    ) -> "OnnxRuntimeEngine":
        """Open an ONNX artifact.

        Args:
            artifact: of kind "onnxruntime".
            settings: the engine configuration; f32 arithmetic, and a KV cache of f32, u8 or u4 (signed here, with a scale a channel
                from the calibration text that the artifact was built with).
            adapters: folders of adapters that `use_adapter` may name.
            chunk_tokens: pieces in which a sequence longer than `batch_tokens` is scored, each reading the
                cache of those before; 0: `batch_tokens`. Shorter ones are scored in one pass: it reads what the
                cache holds, so pieces would change nothing but the speed.
            batch_tokens: tokens of one scoring batch, padding included.

        Raises:
            EngineUnavailable: the artifact is of another kind, a setting is not offered here, or an adapter does not fit.
        """
        if artifact.kind != "onnxruntime":
            raise EngineUnavailable(
                f"engine: onnxruntime cannot load a {artifact.kind} artifact; export it first"
            )
        for name, value, offered in (
            ("compute", settings.compute, ("f32",)),
            ("kv_cache", settings.kv_cache, tuple(CACHE_BITS)),
        ):
            if value not in offered:
                raise EngineUnavailable(
                    f"{name}: {value} is not offered by ONNX Runtime on the CPU; use {name}: {' or '.join(offered)}, or "
                    "engine: openvino"
                )
        if settings.scheduler.prefix_caching:
            raise EngineUnavailable(
                "scheduler.prefix_caching needs a paged KV cache, which ONNX Runtime has on CUDA only; set "
                "it to false, or use engine: openvino"
            )
        return cls(
            artifact, settings, adapters=adapters, chunk_tokens=chunk_tokens, batch_tokens=batch_tokens
        )

    def score(self, requests: Iterable[ScoreRequest], *, with_logits: bool = False) -> Iterator[TokenScores]:
        """Score in right-padded batches of similar length, a shared context once; see `Engine.score`."""
        for window in batches_of_groups(
            requests,
            batch_tokens=SORTED_BATCHES * self._batch_tokens,
            max_targets=MAX_LOGIT_ROWS if with_logits else SORTED_BATCHES * self._batch_tokens,
            min_shared=1,
        ):
            shared = [group for group in window if self._worth_sharing(group)]
            alone = [request for group in window if not self._worth_sharing(group) for request in group]
            made = self._score_shared(shared, with_logits) | self._score_alone(alone, with_logits)
            yield from (made[request] for group in window for request in group)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Complete all requests by continuous batching; a token's time is the end of its step."""
        if not requests:
            return []
        batch = SlotBatch(self._open_graph(), self.settings.scheduler, self._stop, requests)
        self._cache_bytes = batch.cache.nbytes
        made = batch.run()
        for request, generation in zip(requests, made, strict=True):
            short = request.ignore_eos and len(generation.tokens) != request.max_new_tokens
            if short or not generation.tokens:
                raise EngineError(
                    f"{len(generation.tokens)} tokens were made where {request.max_new_tokens} were asked for"
                )
        return made

    def use_adapter(self, name: str | None) -> None:
        """Score and generate with an adapter from now on, or without one."""
        self._open_graph().use_adapter(name)

    def memory(self) -> EngineMemory:
        """Weight bytes of the graph, and the KV cache of the last `generate` (each call reserves its own)."""
        return EngineMemory(self._weights_bytes, self._cache_bytes)

    def close(self) -> None:
        """Release the session."""
        if self._graph is not None:
            self._graph.close()
            self._graph = None
            return_freed_memory()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_graph(self) -> OnnxGraph:
        if self._graph is None:
            raise EngineError("the engine is closed; open it again")
        return self._graph

    def _worth_sharing(self, group: Sequence[ScoreRequest]) -> bool:
        fed = sum(len(request.targets) > 1 for request in group)
        spared = (len(group) - 1) * len(group[0].context)
        longest = len(group[0].context) + max(len(request.targets) for request in group)
        return len(group[0].context) > 1 and spared > fed * BRANCH_TOKENS and longest <= self._batch_tokens

    def _score_alone(
        self, requests: Sequence[ScoreRequest], with_logits: bool
    ) -> dict[ScoreRequest, TokenScores]:
        scores: dict[ScoreRequest, TokenScores] = {}
        for batch in self._by_length([len(r.context) + len(r.targets) - 1 for r in requests], requests):
            chosen = [requests[i] for i in batch]
            long = len(chosen[0].context) + len(chosen[0].targets) - 1 > self._batch_tokens
            made = (
                [self._score_long(chosen[0], with_logits)] if long else self._score_batch(chosen, with_logits)
            )
            scores |= zip(chosen, made, strict=True)
        return scores

    def _score_shared(
        self, groups: Sequence[Sequence[ScoreRequest]], with_logits: bool
    ) -> dict[ScoreRequest, TokenScores]:
        """Contexts in padded batches; then each continuation, which the graph takes one at a time."""
        scores: dict[ScoreRequest, TokenScores] = {}
        contexts = [group[0].context for group in groups]
        for batch in self._by_length([len(c) for c in contexts], [group[0] for group in groups]):
            fed = [contexts[i] for i in batch]
            width = max(map(len, fed))
            rows = np.array([at * width + len(context) - 1 for at, context in enumerate(fed)])
            logits_BV, cache = self._open_graph().feed(fed, rows, keep=True)
            for at, i in enumerate(batch):
                past = [layer[at : at + 1, :, : len(contexts[i]) - 1] for layer in cache]
                for request in groups[i]:
                    targets = np.array(request.targets, np.int64)
                    logits_NV = logits_BV[at : at + 1]
                    if len(targets) > 1:
                        # The context's last token once more: a row alone would meet another kernel.
                        fed_once = (contexts[i][-1], *request.targets[:-1])
                        logits_NV, _ = self._open_graph().feed([fed_once], np.arange(len(targets)), past)
                    scores[request] = score_logits(logits_NV, targets, keep=with_logits)
        return scores

    def _by_length(self, lengths: Sequence[int], requests: Sequence[ScoreRequest]) -> Iterator[list[int]]:
        """Cut sequences, longest first, by padded tokens and by MAX_LOGIT_ROWS targets of their requests."""
        batch: list[int] = []
        targets = 0
        for i in sorted(range(len(requests)), key=lambda i: -lengths[i]):
            full = batch and (
                (len(batch) + 1) * lengths[batch[0]] > self._batch_tokens
                or targets + len(requests[i].targets) > MAX_LOGIT_ROWS
            )
            if full:
                yield batch
                batch, targets = [], 0
            batch.append(i)
            targets += len(requests[i].targets)
        if batch:
            yield batch

    def _score_batch(self, requests: Sequence[ScoreRequest], with_logits: bool) -> list[TokenScores]:
        fed = [r.context + r.targets[:-1] for r in requests]
        width = max(map(len, fed))
        rows = [
            np.arange(len(r.context) - 1, len(f)) + i * width
            for i, (r, f) in enumerate(zip(requests, fed, strict=True))
        ]
        logits_NV, _ = self._open_graph().feed(fed, np.concatenate(rows))
        parts = np.split(logits_NV, np.cumsum([len(r.targets) for r in requests])[:-1])
        return [
            score_logits(part, np.array(r.targets, np.int64), keep=with_logits)
            for part, r in zip(parts, requests, strict=True)
        ]

    def _score_long(self, request: ScoreRequest, with_logits: bool) -> TokenScores:
        fed, first = request.context + request.targets[:-1], len(request.context) - 1
        targets = np.array(request.targets, np.int64)
        past = None
        parts = []
        for begin in range(0, len(fed), self._chunk_tokens):
            piece = fed[begin : begin + self._chunk_tokens]
            rows = np.arange(max(first - begin, 0), len(piece))
            logits_NV, past = self._open_graph().feed([piece], rows, past, keep=True)
            if len(rows):
                parts.append(score_logits(logits_NV, targets[rows + begin - first], keep=with_logits))
        kept = [part.logits for part in parts if part.logits is not None]
        return TokenScores(
            np.concatenate([part.logprobs for part in parts]),
            np.concatenate([part.is_argmax for part in parts]),
            np.concatenate(kept) if kept else None,
        )
