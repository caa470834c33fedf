"""A walk that stops at the looks: its density, and the chances to end above or below each look's bounds.

Standardized statistics of growing samples are a random walk at the information fractions. What is left of its density after
each look is integrated recursively (Armitage, McPherson & Rowe 1969, Journal of the Royal Statistical Society A 132, 235-244;
Jennison & Turnbull 2000, chapter 19).
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import brentq
from scipy.special import ndtr

from tasks.store.record import Record

NODES = 160
"""Nodes of the Gauss-Legendre rule; published critical values come out to 4 digits."""

REACH = 8.0
"""Standard deviations after which the walk's density is taken as 0."""


class Crossing(Record):
    """Where a walk stops.

    Attributes:
        passed: chance to pass at each look.
        stopped: chance to stop for futility at each look.
    """

    passed: tuple[float, ...]
    stopped: tuple[float, ...]


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
    walk = Walk(drift)
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


class Walk:
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
        self._mass = (
            half
            * weights
            * (np.exp(-((moves / spread) ** 2) / 2) / (spread * math.sqrt(2 * math.pi)) @ self._mass)
        )
        self._nodes, self._time = nodes, time
        return above, below

    def _above(self, time: float, bound: float) -> float:
        ahead = time - self._time
        return float(ndtr((self._nodes + self._drift * ahead - bound) / math.sqrt(ahead)) @ self._mass)

    def _below(self, time: float, bound: float) -> float:
        ahead = time - self._time
        return float(ndtr((bound - self._nodes - self._drift * ahead) / math.sqrt(ahead)) @ self._mass)


@lru_cache(maxsize=1)
def _legendre() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    roots, weights = np.polynomial.legendre.leggauss(NODES)
    return roots, weights
