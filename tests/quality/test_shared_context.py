from typing import TYPE_CHECKING

import numpy as np
import pytest

from tasks.engines.protocol import ScoreRequest, TokenScores
from tasks.quality.quality_error import QualityError
from tasks.quality.shared_context import in_scoring_order, score_likelihoods

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


def test_requests_of_one_context_stand_together_and_long_ones_come_first() -> None:
    ordered = in_scoring_order(REQUESTS)
    assert sorted(ordered, key=str) == sorted(REQUESTS, key=str)
    assert [r.context for r in ordered] == [CONTEXT] * 4 + [(5, 9), (8,)]
    assert ordered[0] == REQUESTS[1]


def test_each_request_is_answered_once_with_its_own_numbers(tiny_engine) -> None:
    found = {each.request: each for each in score_likelihoods(tiny_engine, REQUESTS)}
    assert set(found) == set(REQUESTS)
    for request, alone in zip(REQUESTS, tiny_engine.score(REQUESTS), strict=True):
        assert found[request].logprob == pytest.approx(float(alone.logprobs.sum()), abs=1e-4)
        assert found[request].is_greedy == alone.is_argmax.all()


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
