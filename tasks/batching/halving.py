"""Successive halving over scheduler settings: many are looked at shortly, few for long.

Jamieson and Talwalkar, Non-stochastic best arm identification and hyperparameter optimization, AISTATS 2016. What grows from
round to round is the number of runs, never the length of a run: a shorter list of requests would not fill the slots that are
being compared. One run is a pair, the setting and the present one served right after each other, and counts as the logarithm of
the ratio of their figures: drift of the machine cancels, and settings that were measured at different times compare through
their common opponent.

Cost: the full grid would give each of n settings `full_pairs` pairs. A fraction of that is spent, the same amount in every round, and
after each round the best `keep_fraction` goes on, with all the pairs it has had.

Stop rule, after every round with two pairs a setting: no other remaining setting is likely better than the best one by more than
the tolerance, by one-sided t limits that hold for all of them together at 95 % (Bonferroni), with the variance pooled over the
settings; or one is left; or the pairs are spent.

This file decides and does not measure.
"""

import math
from collections.abc import Callable, Mapping, Sequence

from scipy import stats

from configs.tuning import TuningSettings
from tasks.store.record import Record

Measure = Callable[[str, int], Sequence[float]]
"""So many new log-ratios of one setting against the present one; none where it does not run."""

_LEVEL = 0.05


class Tried(Record):
    """One setting: its log-ratios in the order they were measured, and how many rounds it took part in."""

    name: str
    log_ratios: tuple[float, ...]
    rounds: int

    @property
    def mean(self) -> float:
        """Mean log-ratio against the present setting."""
        return math.fsum(self.log_ratios) / len(self.log_ratios)


class Search(Record):
    """What the search found.

    Attributes:
        tried: the settings that ran, best first: those of later rounds before those that were dropped earlier.
        pairs: that were measured.
        full_pairs: that the full grid would have measured.
        stopped: which part of the stop rule ended it.
    """

    tried: tuple[Tried, ...]
    pairs: int
    full_pairs: int
    stopped: str

    @property
    def cost_fraction(self) -> float:
        """Pairs measured over those of the full grid."""
        return self.pairs / self.full_pairs


def search(names: Sequence[str], settings: TuningSettings, measure: Measure) -> Search:
    """Look for the best of several settings.

    Args:
        names: at least one.
        settings: cost, share that goes on, tolerance.
        measure: is asked for few pairs of many settings, then for more of fewer.

    Raises:
        ValueError: no names.
    """
    if not names:
        raise ValueError("there is no setting to try; give batching.schedulers or batching.grid")
    ratios: dict[str, list[float]] = {name: [] for name in names}
    rounds = dict.fromkeys(names, 0)
    alive, stopped = list(names), "the pairs are spent"
    for pairs in plan_rounds(len(names), settings):
        for name in alive:
            ratios[name] += measure(name, pairs)
            rounds[name] += 1
        alive = sorted((name for name in alive if ratios[name]), key=lambda name: -_mean(ratios[name]))
        if len(alive) <= 1:
            stopped = "one setting is left"
            break
        if _settled({name: ratios[name] for name in alive}, settings.tolerance):
            stopped = f"no other setting is likely better than the best by {settings.tolerance:.0%}"
            break
        alive = alive[: max(1, math.ceil(len(alive) * settings.keep_fraction))]
    ran = [
        Tried(name=name, log_ratios=tuple(ratios[name]), rounds=rounds[name])
        for name in names
        if ratios[name]
    ]
    return Search(
        tried=tuple(sorted(ran, key=lambda tried: (-tried.rounds, -tried.mean))),
        pairs=sum(map(len, ratios.values())),
        full_pairs=len(names) * settings.full_pairs,
        stopped=stopped,
    )


def plan_rounds(settings_count: int, settings: TuningSettings) -> tuple[int, ...]:
    """Pairs of each remaining setting, round by round.

    The affordable pairs are divided evenly over the rounds that it takes to come down to one setting; a round gives each setting at
    least one pair and none more than the full grid would. Where not even one pair each is affordable, one is taken all the
    same: less would not try the setting at all.
    """
    alive, counts = settings_count, list[int]()
    while True:
        counts.append(alive)
        if alive == 1:
            break
        alive = min(alive - 1, math.ceil(alive * settings.keep_fraction))
    if len(counts) > 1:
        counts.pop()  # a single one has no competitor
    affordable = settings.cost_fraction * settings_count * settings.full_pairs
    pairs, spent = list[int](), 0
    for number, count in enumerate(counts):
        share = (affordable - spent) / (len(counts) - number)
        each = min(int(share / count), settings.full_pairs - sum(pairs))
        each = max(each, 0 if pairs else 1)
        if each == 0:
            break
        pairs.append(each)
        spent += each * count
    return tuple(pairs)


def _settled(ratios: Mapping[str, Sequence[float]], tolerance: float) -> bool:
    """Whether no other setting's upper limit reaches above the best by more than the tolerance."""
    freedom = sum(len(each) - 1 for each in ratios.values())
    if min(map(len, ratios.values())) < 2 or freedom < 1:
        return False
    squares = sum((value - _mean(each)) ** 2 for each in ratios.values() for value in each)
    best, *others = sorted(ratios.values(), key=lambda each: -_mean(each))
    spread, quantile = math.sqrt(squares / freedom), float(stats.t.isf(_LEVEL / len(others), freedom))
    return all(
        _mean(other) - _mean(best) + quantile * spread * math.sqrt(1 / len(best) + 1 / len(other))
        <= math.log1p(tolerance)
        for other in others
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
