import math

import numpy as np
import pytest

from tasks.engines.protocol import EngineError, ScoreRequest
from tasks.engines.target_scores import batches_by_tokens, batches_of_groups, score_logits


def test_closed_form_and_first_of_equal_maxima() -> None:
    logits = np.array([[0.0, math.log(3.0), math.log(6.0)], [7.0, 7.0, -100.0]], np.float32)
    scores = score_logits(logits, np.array([2, 1]), keep=True)
    np.testing.assert_allclose(scores.logprobs, [math.log(0.6), math.log(0.5)], rtol=1e-6)
    assert scores.is_argmax.tolist() == [True, False]
    np.testing.assert_array_equal(scores.logits, logits)


def test_large_logits_do_not_overflow() -> None:
    scores = score_logits(np.array([[1e4, 1e4 - 1]], np.float32), np.array([1]), keep=False)
    np.testing.assert_allclose(scores.logprobs, [-1 - math.log1p(math.exp(-1))], rtol=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_an_error(bad: float) -> None:
    with pytest.raises(EngineError, match="not finite"):
        score_logits(np.array([[0.0, bad]], np.float32), np.array([0]), keep=False)


def test_missing_rows_are_an_error() -> None:
    with pytest.raises(EngineError, match="1 rows of logits for 2 targets"):
        score_logits(np.zeros((1, 4), np.float32), np.array([0, 1]), keep=False)


def test_batches_keep_order_and_limits() -> None:
    requests = [ScoreRequest((1,) * n, (2,) * t) for n, t in ((4, 1), (4, 1), (1, 9), (30, 1), (1, 1))]
    batches = list(batches_by_tokens(requests, batch_tokens=12))
    assert [r for batch in batches for r in batch] == requests
    assert [len(batch) for batch in batches] == [2, 1, 1, 1]
    assert [len(batch) for batch in batches_by_tokens(requests[:2], batch_tokens=99, max_targets=1)] == [1, 1]
    with pytest.raises(EngineError, match="at least one"):
        list(batches_by_tokens([ScoreRequest((), (1,))], batch_tokens=8))


def test_a_group_stands_whole_in_a_batch_where_it_fits() -> None:
    def asked(context: int, *targets: int) -> list[ScoreRequest]:
        return [ScoreRequest((context,) * 10, (choice,) * n) for choice, n in enumerate(targets)]

    def lengths(*, batch_tokens: int = 40, max_targets: int = 99, min_shared: int = 8) -> list[list[int]]:
        requests = asked(1, 4, 4) + asked(2, 4, 4, 4) + asked(3, 20, 20) + asked(4, 1)
        batches = list(batches_of_groups(
            requests, batch_tokens=batch_tokens, max_targets=max_targets, min_shared=min_shared
        ))  # fmt: skip
        assert [r for batch in batches for group in batch for r in group] == requests
        assert all(len({r.context for r in group}) == 1 for batch in batches for group in batch)
        return [[len(group) for group in batch] for batch in batches]

    assert lengths() == [[2, 3], [1], [1], [1]]
    assert lengths(max_targets=19) == [[2], [3], [1], [1], [1]]
    assert lengths(batch_tokens=10_000) == [[2, 3, 2, 1]]
    assert lengths(batch_tokens=10_000, min_shared=11) == [[1] * 8]
    with pytest.raises(EngineError, match="at least one"):
        list(batches_of_groups([ScoreRequest((1,), ())], batch_tokens=8, max_targets=8, min_shared=1))
