"""The verdict on speed: a proposal is faster than the stage before by the configured factor, interval included."""

import math
from collections.abc import Sequence
from typing import Literal

from tasks.quality.intervals import ratio_interval
from tasks.store.record import Record


class SpeedVerdict(Record):
    """One comparison.

    Attributes:
        verdict: PASS where the whole interval is above the factor, FAIL where none of it is, else INCONCLUSIVE.
        gain: ratio of the figures, geometric mean over the pairs.
        ci_low: lower end of its interval.
        ci_high: upper end.
        min_gain: the factor asked for.
        pairs: behind it.
    """

    verdict: Literal["PASS", "FAIL", "INCONCLUSIVE"]
    gain: float
    ci_low: float
    ci_high: float
    min_gain: float
    pairs: int

    @property
    def figures(self) -> str:
        """In words."""
        return f"{self.gain:.3f}x ({self.ci_low:.3f} to {self.ci_high:.3f}), more than {self.min_gain:g} is asked"


def judge_speed(log_ratios: Sequence[float], min_gain: float, confidence: float) -> SpeedVerdict:
    """Decide from interleaved pairs (`tasks/serving/interleaved.py`); they must be others than those that chose the proposal.

    Raises:
        TooFewClusters: fewer than 8 pairs.
        ValueError: a log-ratio is not finite.
    """
    interval = ratio_interval(log_ratios, confidence)
    asked = math.log(min_gain)
    verdict: Literal["PASS", "FAIL", "INCONCLUSIVE"] = "INCONCLUSIVE"
    if interval.low > asked:
        verdict = "PASS"
    elif interval.high <= asked:
        verdict = "FAIL"
    return SpeedVerdict(
        verdict=verdict,
        gain=math.exp(interval.estimate),
        ci_low=math.exp(interval.low),
        ci_high=math.exp(interval.high),
        min_gain=min_gain,
        pairs=len(log_ratios),
    )
