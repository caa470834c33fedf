"""Group-sequential plans: how often a task may be judged while its items are drawn, and at which levels.

Judging the same growing sample four times at 5 % accepts a bad candidate in up to 13 %. An alpha-spending plan
(Lan & DeMets 1983, Biometrika 70, 659-663) divides alpha over the looks: the function of O'Brien-Fleming
type spends little early, so that the last look has nearly the whole level. The critical value of each look
follows from the joint distribution of the statistics, a random walk at the information fractions, by the
recursive integration of Armitage, McPherson & Rowe (1969), Journal of the Royal Statistical Society A 132,
235-244 (Jennison & Turnbull 2000, chapter 19). The looks are cumulative prefixes of one seeded permutation of
a task's items. Futility is non-binding: the levels do not count on it, so drawing on costs no error.

The gate's interval at a look's level is a repeated confidence interval (Jennison & Turnbull 1989): the
intervals of all looks together hold with probability 1 - 2 alpha.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.optimize import brentq

from configs.quality import SequentialSettings
from tasks.store.record import Record

SequentialKind = Literal["obrien-fleming", "confidence-sequence", "none"]

LINEAR_SHARE = 1e-8
"""Share of alpha spent linearly, so that no look has a level of 0 and with it an infinite interval."""

NODES = 160
"""Nodes of the Gauss-Legendre rule; published critical values come out to 4 digits."""

REACH = 8.0
"""Standard deviations after which the walk's density is taken as 0."""


class LookPlan(Record):
    """The looks at one task.

    Attributes:
        kind: "obrien-fleming", "confidence-sequence" or "none".
        alpha: one-sided level of a PASS that all looks spend together.
        items: items at each look, cumulative; the last is all that the task may draw.
        levels: one-sided level of each look's own interval; of a confidence sequence alpha at every look.
        futility_power: chance of a PASS at the last look below which drawing stops; None: it goes on.
    """

    kind: SequentialKind
    alpha: float
    items: tuple[int, ...]
    levels: tuple[float, ...]
    futility_power: float | None

    @property
    def fractions(self) -> tuple[float, ...]:
        """Share of the items at each look: the information, whatever the items' clusters."""
        return tuple(items / self.items[-1] for items in self.items)


class LookLevels(Record):
    """At which look of which plan a task's samples are.

    Attributes:
        plan: the looks at this task.
        look: number of the look, from 1.
    """

    plan: LookPlan
    look: int

    @property
    def is_last(self) -> bool:
        """Whether no more items may be drawn."""
        return self.look == len(self.plan.items)

    def levels(self, metrics: int) -> tuple[float, float]:
        """One-sided levels of PASS and of FAIL at this look; FAIL spends alpha / `metrics`."""
        plan = self.plan
        if plan.kind == "confidence-sequence":
            return plan.alpha, plan.alpha / metrics
        failing = spending_levels(plan.fractions, plan.alpha / metrics)
        return plan.levels[self.look - 1], failing[self.look - 1]


class Crossing(Record):
    """Where a walk stops.

    Attributes:
        passed: chance to pass at each look.
        stopped: chance to stop for futility at each look.
    """

    passed: tuple[float, ...]
    stopped: tuple[float, ...]


def plan_looks(total_items: int, alpha: float, settings: SequentialSettings) -> LookPlan:
    """Divide a task's items into looks and alpha over them.

    Args:
        total_items: items that the task may draw: the configured number, or all it has where that is less.
        alpha: one-sided level of a PASS over all looks (the gate's alpha / tries).
        settings: kind, number of looks, futility.

    Raises:
        ValueError: no item, or alpha outside (0, 0.5).
    """
    if total_items < 1 or not 0 < alpha < 0.5:
        raise ValueError(f"total_items={total_items}, alpha={alpha}: at least one item, alpha in (0, 0.5)")
    looks = 1 if settings.kind == "none" else settings.looks
    items = tuple(sorted({max(1, round(total_items * look / looks)) for look in range(1, looks + 1)}))
    if settings.kind == "confidence-sequence":
        levels = (alpha,) * len(items)
    else:
        levels = spending_levels(tuple(count / total_items for count in items), alpha)
    return LookPlan(
        kind=settings.kind,
        alpha=alpha,
        items=items,
        levels=levels,
        futility_power=None if settings.kind == "none" else settings.futility_power,
    )


@lru_cache(maxsize=256)
def spending_levels(fractions: tuple[float, ...], alpha: float) -> tuple[float, ...]:
    """One-sided level of each look of an O'Brien-Fleming type plan.

    Args:
        fractions: information at each look, ascending, the last 1.
        alpha: one-sided level of all looks together.
    """
    times = np.asarray(fractions)
    spent = 2 * stats.norm.sf(stats.norm.isf(alpha / 2) / np.sqrt(times))
    spent = (1 - LINEAR_SHARE) * spent + LINEAR_SHARE * alpha * times
    critical: list[float] = []
    walk = _Walk(drift=0.0)
    for time, increment in zip(fractions, np.diff(spent, prepend=0.0), strict=True):
        critical.append(walk.critical(time, float(increment)))
        walk.step(time, critical[-1] * math.sqrt(time), -math.inf)
    return tuple(float(level) for level in stats.norm.sf(critical))


def crossing(
    fractions: Sequence[float], critical: Sequence[float], drift: float, futility_power: float | None
) -> Crossing:
    """Chances to stop at each look, for a walk whose mean at fraction t is `drift` x t and variance t.

    Args:
        fractions: information at each look.
        critical: critical value of the standardized statistic at each look.
        drift: expected statistic at full information.
        futility_power: as in `LookPlan`; None where drawing never stops for futility.
    """
    walk = _Walk(drift)
    passed, stopped = [], []
    for time, value in zip(fractions, critical, strict=True):
        lower = -math.inf if time >= 1 else futility_bound(time, critical[-1], drift, futility_power)
        above, below = walk.step(time, value * math.sqrt(time), lower)
        passed.append(above)
        stopped.append(below)
    return Crossing(passed=tuple(passed), stopped=tuple(stopped))


def futility_bound(fraction: float, critical: float, drift: float, power: float | None) -> float:
    """Value of the walk below which the conditional power is under `power`, at `drift` and at its own trend."""
    if power is None:
        return -math.inf
    needed = critical + stats.norm.ppf(power) * math.sqrt(1 - fraction)
    return float(min(needed - drift * (1 - fraction), fraction * needed))


def conditional_power(
    loss: ArrayLike, margin: float, error: ArrayLike, fraction: float, critical: ArrayLike
) -> NDArray[np.float64]:
    """Chance of a PASS at the last look, if the rest is as favourable as equality or as what was seen; broadcasts.

    Args:
        loss: estimate at this look.
        margin: largest loss allowed.
        error: standard error of the estimate, above 0.
        fraction: information at this look, below 1.
        critical: critical value of the last look.
    """
    gap, scale = margin - np.asarray(loss), np.asarray(error) * math.sqrt(fraction)
    walk, drift = fraction * gap / scale, np.maximum(margin, gap) / scale
    rest = 1 - fraction
    distance = walk + drift * rest - np.asarray(critical)
    chance: NDArray[np.float64] = stats.norm.cdf(distance / math.sqrt(rest))
    return chance


class _Walk:
    """The density of a walk that has not stopped yet, on quadrature nodes."""

    def __init__(self, drift: float) -> None:
        self._drift, self._time = drift, 0.0
        self._nodes: NDArray[np.float64] = np.zeros(1)
        self._mass: NDArray[np.float64] = np.ones(1)

    def critical(self, time: float, chance: float) -> float:
        """Standardized value that the walk exceeds at `time` with `chance`."""
        scale = math.sqrt(time)
        return float(brentq(lambda z: self._above(time, z * scale) - chance, -REACH, 2 * REACH, xtol=1e-10))

    def step(self, time: float, upper: float, lower: float) -> tuple[float, float]:
        """Move on to `time`; return the chances to end above `upper` and below `lower` there."""
        above, below = self._above(time, upper), self._below(time, lower)
        centre, reach = self._drift * time, REACH * math.sqrt(time)
        first, last = max(lower, centre - reach), min(upper, centre + reach)
        roots, weights = _legendre()
        half = max(last - first, 0.0) / 2
        nodes = first + half * (1 + roots)
        spread = math.sqrt(time - self._time)
        moves = nodes[:, None] - self._nodes - self._drift * (time - self._time)
        self._mass = half * weights * (stats.norm.pdf(moves / spread) / spread @ self._mass)
        self._nodes, self._time = nodes, time
        return above, below

    def _above(self, time: float, bound: float) -> float:
        ahead = time - self._time
        return float(
            stats.norm.sf((bound - self._nodes - self._drift * ahead) / math.sqrt(ahead)) @ self._mass
        )

    def _below(self, time: float, bound: float) -> float:
        ahead = time - self._time
        return float(
            stats.norm.cdf((bound - self._nodes - self._drift * ahead) / math.sqrt(ahead)) @ self._mass
        )


@lru_cache(maxsize=1)
def _legendre() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    roots, weights = np.polynomial.legendre.leggauss(NODES)
    return roots, weights
