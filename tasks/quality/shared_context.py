"""Log-likelihoods of continuations, with no token fed twice where one pass answers several requests.

A causal pass over context + targets tells the distribution after the context and after each target but the
last. So " are" against " is" after one context is one pass, and " France" comes free with " Kaz|akh|stan".
lm-eval's hf model does this for one-token continuations; here any request whose tokens but the last begin
another request of its context rides along.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from tasks.engines.protocol import Engine, ScoreRequest, TokenScores
from tasks.quality.quality_error import QualityError


@dataclass(frozen=True)
class Likelihood:
    """Sum of the targets' log-probabilities, in nats, and whether each target was the most probable token."""

    request: ScoreRequest
    logprob: float
    is_greedy: bool


@dataclass(frozen=True)
class _Pass:
    """One sequence to feed, and the requests it answers; `longest` is one of them."""

    longest: ScoreRequest
    answers: tuple[ScoreRequest, ...]


def score_likelihoods(engine: Engine, requests: Sequence[ScoreRequest]) -> Iterator[Likelihood]:
    """Score distinct requests, longest first, yielding each once, as soon as it is known.

    Raises:
        QualityError: the engine returned a non-finite log-probability or the wrong number of scores.
    """
    passes = plan_passes(requests)
    alone = [p for p in passes if len(p.answers) == 1]
    shared = [p for p in passes if len(p.answers) > 1]
    for group, with_logits in ((shared, True), (alone, False)):
        if not group:
            continue
        scores = engine.score((p.longest for p in group), with_logits=with_logits)
        for planned, scored in zip(group, scores, strict=True):
            for request in planned.answers:
                logprobs, is_argmax = _read(request, planned.longest, scored)
                if len(logprobs) != len(request.targets) or not np.isfinite(logprobs).all():
                    raise QualityError(
                        f"the engine gave log-probabilities {logprobs[:4]} for a continuation of "
                        f"{len(request.targets)} tokens; a NaN or a missing score is never an answer"
                    )
                yield Likelihood(request, float(logprobs.sum(dtype=np.float64)), bool(is_argmax.all()))


def plan_passes(requests: Sequence[ScoreRequest]) -> list[_Pass]:
    """Distinct requests to passes: requests of one context stand together, long sequences first."""
    ordered = sorted(requests, key=lambda r: (r.context, -len(r.targets), r.targets))
    passes: list[_Pass] = []
    for _, group in groupby(ordered, key=lambda r: r.context):
        answers: dict[ScoreRequest, list[ScoreRequest]] = {}
        for request in group:
            fed = request.targets[:-1]
            host = next((h for h in answers if h.targets[: len(fed)] == fed), None)
            answers.setdefault(host or request, []).append(request)
        passes.extend(_Pass(longest, tuple(riders)) for longest, riders in answers.items())
    return sorted(passes, key=lambda p: -len(p.longest.context) - len(p.longest.targets))


def _read(
    request: ScoreRequest, longest: ScoreRequest, scored: TokenScores
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The request's own log-probabilities (T,) and argmax flags (T,) out of a pass over `longest`."""
    if request is longest:
        return scored.logprobs.astype(np.float64), scored.is_argmax
    if scored.logits is None:
        raise QualityError("the engine returned no logits although they were asked for")
    rows = scored.logits[: len(request.targets)].astype(np.float64)  # (T, V)
    top = rows.max(axis=1)
    targets = rows[np.arange(len(rows)), list(request.targets)]
    return targets - top - np.log(np.exp(rows - top[:, None]).sum(axis=1)), targets == top
