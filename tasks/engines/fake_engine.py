"""A tiny closed-form language model behind the engine protocol, for tests of what stands on top of engines.

The next-token logits depend on the previous token only: a fixed random matrix drawn from `seed`. `noise` adds
a second one, so that a noisier fake is a worse copy of the fake with noise 0, as a quantized model is of its
source. Times are computed from `tokens_per_s`.
"""

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
from tasks.engines.target_scores import score_logits


class FakeEngine:
    """Deterministic; `scheduler.max_num_seqs` streams at once, each at `tokens_per_s`."""

    def __init__(
        self,
        settings: EngineSettings,
        *,
        vocab_size: int = 64,
        noise: float = 0.0,
        tokens_per_s: float = 100.0,
        weights_bytes: int = 1_000_000,
        seed: int = 0,
    ) -> None:
        """Draw the model; logits have a standard deviation of 2, `noise` is that of what is added."""
        self.settings = settings
        self.vocab_size = vocab_size
        source = np.random.default_rng(seed).normal(0, 2, (vocab_size, vocab_size))
        disturbance = np.random.default_rng(seed + 1).normal(0, 1, (vocab_size, vocab_size))
        self._logits_VV = (source + noise * disturbance).astype(np.float32)
        self._tokens_per_s = tokens_per_s
        self._weights_bytes = weights_bytes
        self._closed = False

    def score(self, requests: Iterable[ScoreRequest], *, with_logits: bool = False) -> Iterator[TokenScores]:
        """See `Engine.score`."""
        for request in requests:
            self._check_open()
            previous = (request.context[-1], *request.targets[:-1])
            rows_TV = self._logits_VV[np.array(previous) % self.vocab_size]
            targets = np.array(request.targets, np.int64) % self.vocab_size
            yield score_logits(rows_TV, targets, keep=with_logits)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """See `Engine.generate`; token 0 ends a text."""
        self._check_open()
        results, began, size = [], 0.0, self.settings.scheduler.max_num_seqs
        for begin in range(0, len(requests), size):
            batch = [self._complete(request, began) for request in requests[begin : begin + size]]
            began = max(generation.token_times_s[-1] for generation in batch)
            results += batch
        return results

    def memory(self) -> EngineMemory:
        """See `Engine.memory`."""
        return EngineMemory(self._weights_bytes, 0)

    def close(self) -> None:
        """Refuse every later call."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _complete(self, request: GenerationRequest, began: float) -> Generation:
        tokens = [int(self._logits_VV[request.prompt[-1] % self.vocab_size].argmax())]
        while len(tokens) < request.max_new_tokens and (request.ignore_eos or tokens[-1] != 0):
            tokens.append(int(self._logits_VV[tokens[-1]].argmax()))
        times = tuple(began + (i + 1) / self._tokens_per_s for i in range(len(tokens)))
        return Generation(tuple(tokens), times)

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("the engine is closed")
