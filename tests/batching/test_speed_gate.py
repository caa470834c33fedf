"""The verdict on speed: decided by the interval, in the gate's error rates."""

import math
import random

import pytest

from tasks.batching.speed_gate import judge_speed
from tasks.quality.intervals import TooFewClusters


def ratios(gain: float, seed: int, pairs: int = 16, noise: float = 0.05) -> list[float]:
    draws = random.Random(seed)
    return [math.log(gain) + draws.gauss(0, noise) for _ in range(pairs)]


def test_three_verdicts():
    assert judge_speed(ratios(1.3, 1), 1.1, 0.95).verdict == "PASS"
    assert judge_speed(ratios(1.0, 1), 1.1, 0.95).verdict == "FAIL"
    unsure = judge_speed(ratios(1.11, 1, noise=0.2), 1.1, 0.95)
    assert unsure.verdict == "INCONCLUSIVE"
    assert unsure.ci_low < 1.1 < unsure.ci_high
    assert "more than 1.1 is asked" in unsure.figures


def test_a_gain_that_is_not_there_is_kept_in_at_most_one_of_forty():
    kept = sum(judge_speed(ratios(1.1, seed, pairs=8), 1.1, 0.95).verdict == "PASS" for seed in range(4000))
    assert kept / 4000 == pytest.approx(0.025, abs=0.007)


def test_too_few_pairs_are_refused():
    with pytest.raises(TooFewClusters):
        judge_speed(ratios(2.0, 1, pairs=7), 1.0, 0.95)
