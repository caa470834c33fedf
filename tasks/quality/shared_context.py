"""Log-likelihoods of continuations, asked in the order in which an engine can share most.

The choices of an item have one context. Requests of one context go to the engine one behind the other, long ones first: an engine
that can feeds the context once (`Engine.score`), and batches hold sequences of similar length.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tasks.engines.protocol import Engine, ScoreRequest
from tasks.quality.quality_error import QualityError


@dataclass(frozen=True)
class Likelihood:
    """Sum of the targets' log-probabilities, in nats, and whether each target was the most probable token."""

    request: ScoreRequest
    logprob: float
    is_greedy: bool


def score_likelihoods(engine: Engine, requests: Sequence[ScoreRequest]) -> Iterator[Likelihood]:
    """Score distinct requests, yielding each once, as soon as it is known.

    Raises:
        QualityError: the engine returned a non-finite log-probability or the wrong number of scores.
    """
    ordered = in_scoring_order(requests)
    for request, scored in zip(ordered, engine.score(ordered), strict=True):
        if len(scored.logprobs) != len(request.targets) or not np.isfinite(scored.logprobs).all():
            raise QualityError(
                f"the engine gave log-probabilities {scored.logprobs[:4]} for a continuation of "
                f"{len(request.targets)} tokens; a NaN or a missing score is never an answer"
            )
        logprob = float(scored.logprobs.sum(dtype=np.float64))
        yield Likelihood(request, logprob, bool(scored.is_argmax.all()))


def in_scoring_order(requests: Sequence[ScoreRequest]) -> list[ScoreRequest]:
    """Requests of one context together; contexts whose longest sequence is long come first."""
    longest: dict[tuple[int, ...], int] = {}
    for request in requests:
        length = len(request.context) + len(request.targets)
        longest[request.context] = max(longest.get(request.context, 0), length)
    return sorted(requests, key=lambda r: (-longest[r.context], r.context, -len(r.targets), r.targets))
