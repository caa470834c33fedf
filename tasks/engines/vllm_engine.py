"""vLLM, its engine in a process of its own environment: scoring and generation through the scheduler that `vllm serve` runs.

Scores come as vLLM gives them for prompt tokens, so they go through its kernels and its paged cache. The logits of a score are
log-probabilities here: the same up to a constant in each row, which is all that a softmax sees.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Self

import numpy as np

from configs.engine import EngineSettings
from tasks.engines.protocol import (
    EngineError,
    EngineMemory,
    Generation,
    GenerationRequest,
    ScoreRequest,
    TokenScores,
)
from tasks.engines.streaming import StreamRequest
from tasks.engines.streaming_vllm import StreamingVllm
from tasks.engines.target_scores import batches_by_tokens
from tasks.engines.vllm_process import VllmProcess
from tasks.store.artifact import Artifact

_MAX_ROWS = 256  # of logits in one answer: 50 MB of a vocabulary of 49,152


class VllmEngine:
    """One checkpoint, packed or not."""

    def __init__(
        self, process: VllmProcess, artifact: Artifact, settings: EngineSettings, batch_tokens: int
    ) -> None:
        """Use `open`."""
        self.settings, self.vocab_size = settings, process.vocab_size
        self._process, self._batch_tokens = process, batch_tokens
        self._stream = StreamingVllm(process, settings)
        self._weights_bytes = sum(
            each.size_bytes for each in artifact.manifest.files if each.path.endswith(".safetensors")
        )
        self._sent = 0

    @classmethod
    def open(cls, artifact: Artifact, settings: EngineSettings, *, batch_tokens: int = 2048) -> "VllmEngine":
        """Start vLLM on a checkpoint; sequences may be as long as the model's context and the cache allow.

        Raises:
            EngineUnavailable: there is no vLLM, or it refuses the artifact or the settings.
        """
        process = VllmProcess(artifact, settings)
        return cls(process, artifact, settings, batch_tokens)

    def score(self, requests: Iterable[ScoreRequest], *, with_logits: bool = False) -> Iterator[TokenScores]:
        """Score as prompts, with one token generated after each; see `Engine.score`."""
        most = _MAX_ROWS if with_logits else None
        for batch in batches_by_tokens(requests, batch_tokens=self._batch_tokens, max_targets=most):
            yield from self._scored(batch, with_logits)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Complete all by vLLM's continuous batching; a token's time is the end of the step that brought it."""
        began = time.perf_counter()
        first = self._sent
        for request in requests:
            self._stream.submit(self._sent, StreamRequest(request))
            self._sent += 1
        tokens: list[list[int]] = [[] for _ in requests]
        times: list[list[float]] = [[] for _ in requests]
        while self._stream.busy:
            progress = self._stream.step()
            now = time.perf_counter() - began
            for each in progress:
                if each.end == "rejected":
                    raise EngineError(
                        "vLLM gave a request up: its cache does not hold it; raise scheduler.cache_mib"
                    )
                tokens[each.request_id - first] += each.tokens
                times[each.request_id - first] += [now] * len(each.tokens)
        return [Generation(tuple(t), tuple(s)) for t, s in zip(tokens, times, strict=True)]

    def memory(self) -> EngineMemory:
        """Weight bytes of the checkpoint, and the cache that vLLM reserves."""
        return EngineMemory(self._weights_bytes, self.settings.scheduler.cache_mib * 2**20)

    def close(self) -> None:
        """End vLLM's process."""
        self._process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _scored(self, batch: Sequence[ScoreRequest], with_logits: bool) -> Iterator[TokenScores]:
        answer, payload = self._process.ask(
            "score", requests=[[each.context, each.targets] for each in batch], with_logits=with_logits
        )
        sizes = [len(each.targets) for each in batch]
        rows = sum(sizes)
        expected = rows * (5 + 4 * self.vocab_size * with_logits)
        if answer["targets"] != sizes or len(payload) != expected:
            raise EngineError(
                f"vLLM returned {len(payload)} bytes of scores for {rows} targets, not {expected}"
            )
        logprobs = np.frombuffer(payload, np.float32, rows)
        if not np.isfinite(logprobs).all():
            raise EngineError(
                "vLLM returned log-probabilities that are not finite; try another weight format"
            )
        is_argmax = np.frombuffer(payload, np.bool_, rows, offset=4 * rows)
        logits = (
            np.frombuffer(payload[5 * rows :], np.float32).reshape(-1, self.vocab_size)
            if with_logits
            else None
        )
        begin = 0
        for size in sizes:
            taken = slice(begin, begin + size)
            yield TokenScores(logprobs[taken], is_argmax[taken], None if logits is None else logits[taken])
            begin += size
