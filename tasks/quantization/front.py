"""Fronts of two and three objectives, what lies beneath them, and the scales on which a search weighs speed, bytes and divergence.

All scales are logarithms above a worst corner, so that a factor is worth the same anywhere, and all coordinates of a point are to be
as large as possible. A search goes by two fronts first: speed against divergence, and smallness against divergence.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

BEST_NATS = 1e-3
"""Divergence below which nothing is worth more."""

Point = tuple[float, float]
Point3 = tuple[float, float, float]


def pareto(points: Iterable[Point]) -> list[Point]:
    """Points that no other is at least as large as in both coordinates, the first coordinate rising."""
    best: list[Point] = []
    for point in sorted(set(points), reverse=True):
        if not best or point[1] > best[-1][1]:
            best.append(point)
    return best[::-1]


def hypervolume(front: Sequence[Point]) -> float:
    """Area between the axes and a front as `pareto` gives it; coordinates below 0 count as 0."""
    edges = itertools.pairwise([0.0, *(max(x, 0.0) for x, _ in front)])
    return sum((right - left) * max(y, 0.0) for (left, right), (_, y) in zip(edges, front, strict=True))


def growth(front: Sequence[Point], point: Point) -> float:
    """Area that a point adds to a front."""
    if point[0] <= 0 or point[1] <= 0 or any(x >= point[0] and y >= point[1] for x, y in front):
        return 0.0
    return hypervolume(pareto([*front, point])) - hypervolume(front)


def volume(points: Iterable[Point3]) -> float:
    """Between the axes and the front of three objectives, in slices of the third; coordinates below 0 count as 0."""
    above = [point for point in points if min(point) > 0]
    levels = sorted({third for *_, third in above})
    return sum(
        (level - below) * hypervolume(pareto((x, y) for x, y, third in above if third >= level))
        for below, level in itertools.pairwise([0.0, *levels])
    )


@dataclass(frozen=True)
class Corner:
    """What is worth nothing: this slow, this large, or this far from the source.

    Attributes:
        log_speed: logarithm of tokens a second.
        mib: of weights.
        nats: divergence.
    """

    log_speed: float
    mib: float
    nats: float

    def fast(self, log_speed: float, nats: float) -> Point:
        """On the front of speed against divergence."""
        return log_speed - self.log_speed, self._near(nats)

    def small(self, mib: float, nats: float) -> Point:
        """On the front of bytes against divergence."""
        return math.log(self.mib / mib), self._near(nats)

    def all_three(self, log_speed: float, mib: float, nats: float) -> Point3:
        """On the front of speed, bytes and divergence."""
        return log_speed - self.log_speed, math.log(self.mib / mib), self._near(nats)

    def _near(self, nats: float) -> float:
        return math.log(self.nats / max(nats, BEST_NATS))
