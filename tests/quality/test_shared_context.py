from typing import TYPE_CHECKING

import numpy as np
import pytest

from tasks.engines.protocol import ScoreRequest, TokenScores
from tasks.quality.quality_error import QualityError
from tasks.quality.shared_context import plan_passes, score_likelihoods

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CONTEXT = (5, 9, 7)
REQUESTS = [
    ScoreRequest(CONTEXT, (11,)),
    ScoreRequest(CONTEXT, (12, 13, 14)),
    ScoreRequest(CONTEXT, (12, 40)),
    ScoreRequest(CONTEXT, (15, 16)),
    ScoreRequest((5, 9), (7,)),
    ScoreRequest((8,), (1, 2)),
]


def test_requests_ride_along_only_where_their_tokens_are_fed_anyway() -> None:
    passes = {p.longest: set(p.answers) for p in plan_passes(REQUESTS)}
    assert len(passes) == 4
    assert passes[REQUESTS[1]] == {REQUESTS[0], REQUESTS[1], REQUESTS[2]}
    assert passes[REQUESTS[3]] == {REQUESTS[3]}


def test_shared_passes_give_the_numbers_of_separate_ones(tiny_engine) -> None:
    found = {each.request: each for each in score_likelihoods(tiny_engine, REQUESTS)}
    assert set(found) == set(REQUESTS)
    for request, alone in zip(REQUESTS, tiny_engine.score(REQUESTS), strict=True):
        assert found[request].logprob == pytest.approx(float(alone.logprobs.sum()), abs=1e-4)
        assert found[request].is_greedy == alone.is_argmax.all()


def test_the_greedy_continuation_is_told_through_a_shared_pass(tiny_engine) -> None:
    logits = next(tiny_engine.score([ScoreRequest(CONTEXT, (0,))], with_logits=True)).logits
    best = ScoreRequest(CONTEXT, (int(np.argmax(logits)),))
    found = {each.request: each.is_greedy for each in score_likelihoods(tiny_engine, [best, REQUESTS[1]])}
    assert found[best]


class _NanEngine:
    def score(
        self, requests: "Iterable[ScoreRequest]", *, with_logits: bool = False
    ) -> "Iterator[TokenScores]":
        for request in requests:
            shape = len(request.targets)
            yield TokenScores(np.full(shape, np.nan, np.float32), np.zeros(shape, np.bool_))


def test_nan_is_an_error_not_an_answer() -> None:
    with pytest.raises(QualityError, match="nan"):
        list(score_likelihoods(_NanEngine(), [REQUESTS[5]]))  # type: ignore[arg-type]
