"""What the plugin says of rows of logits, against scipy."""

import numpy as np
import openvino as ov
import pytest
from scipy.special import logsumexp

from tasks.engines.protocol import EngineError
from tasks.engines.row_softmax import ROWS_AT_ONCE, RowSoftmax
from tasks.engines.target_scores import score_logits, scores_of_rows


@pytest.fixture(scope="module")
def softmax() -> RowSoftmax:
    return RowSoftmax(ov.Core(), {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 2})


@pytest.mark.parametrize("rows", [0, 1, ROWS_AT_ONCE, 2 * ROWS_AT_ONCE + 3])
def test_matches_scipy(softmax: RowSoftmax, rows: int) -> None:
    logits = np.random.default_rng(rows).normal(-700, 30, (rows, 1003)).astype(np.float32)
    found = softmax(logits)
    np.testing.assert_array_equal(found.top, logits.max(1, initial=-np.inf))
    exact = logsumexp(logits.astype(np.float64) - logits.max(1, initial=-np.inf, keepdims=True), axis=1)
    np.testing.assert_allclose(found.total, exact, rtol=0, atol=2e-5)


def test_scores_equal_those_of_numpy(softmax: RowSoftmax) -> None:
    """Ties as well: of equal maxima the first is the argmax."""
    logits = np.random.default_rng(0).normal(0, 5, (40, 500)).astype(np.float32)
    logits[:, 7] = logits[:, 300] = logits.max(1)
    targets = np.where(np.arange(40) % 2, 7, 300)
    ours = scores_of_rows(softmax(logits), targets, np.arange(40), keep=False)
    plain = score_logits(logits, targets, keep=False)
    np.testing.assert_allclose(ours.logprobs, plain.logprobs, rtol=0, atol=2e-5)
    np.testing.assert_array_equal(ours.is_argmax, targets == 7)
    np.testing.assert_array_equal(plain.is_argmax, targets == 7)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_refused(softmax: RowSoftmax, bad: float) -> None:
    logits = np.zeros((3, 64), np.float32)
    logits[1, 5] = bad
    with pytest.raises(EngineError, match="not finite"):
        scores_of_rows(softmax(logits), np.zeros(3, np.int64), np.arange(3), keep=False)
