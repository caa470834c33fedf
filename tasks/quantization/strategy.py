"""In which order the points of a space are tried, and which of them not at all: the cheapest information first.

What a screen costs is its build, and builds differ by a factor of twenty: rounding to nearest takes seconds, AWQ and GPTQ minutes, another
cache type for a built artifact nothing. So rungs by the amount of text, as in plain successive halving, save nothing; here the rungs are
the formats themselves. Everything known so far predicts what every other option would come out at (`prediction`), and the next step is the one
whose expected gain of the front is largest for its predicted seconds: the expected hypervolume improvement (Emmerich et al. 2006), of
the front of speed against divergence plus that of bytes against divergence, in logarithms.

An option takes two steps: "screen" (build it, score the search text) and "time" (a short run of requests). Once something known is
within the limit of divergence, what lies beyond the limit is worth nothing, however fast. What is expected to add nothing is not tried.

The strategy is pure: it proposes a step, is told what came out, and proposes the next. The stage runs the steps, and the benchmark
replays a table over the same code. Nothing is drawn by chance, and options are ordered by name: the same figures give the same steps.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tasks.quantization.options import Option
from tasks.quantization.prediction import BUILD_SECONDS, DIVERGENCE, SPEED, Floats

LEAST_GAIN = 0.002
"""Of the front's hypervolume: what is expected to add less is not tried."""
WORST_NATS, BEST_NATS = 3.0, 1e-3
"""Divergence that is worth nothing, and below which nothing is worth more."""
_NODES, _SHARES = (-math.sqrt(3), 0.0, math.sqrt(3)), (1 / 6, 2 / 3, 1 / 6)
"""Gauss-Hermite quadrature of a normal distribution, three points."""

StepKind = Literal["screen", "time"]
Point = tuple[float, float]


@dataclass(frozen=True)
class Step:
    """What to do next: screen an option, which builds it, or time it."""

    kind: StepKind
    option: Option


class Strategy:
    """The state of one search."""

    def __init__(self, options: Iterable[Option], *, limit_nats: float | None = None) -> None:
        """Nothing is known yet.

        Args:
            options: all that may be tried, names distinct; their order has no meaning.
            limit_nats: divergence beyond which an option is worth nothing once another is within it; None: the whole front counts.
        """
        self.options = tuple(sorted(options, key=lambda each: each.name))
        self.limit_nats = limit_nats
        self.nats: dict[str, float] = {}
        self.speed: dict[str, float] = {}
        self.estimated_nats: dict[str, float] = {}
        self.failed: set[str] = set()
        self._seconds: dict[str, float] = {}
        self._score_s: list[float] = []
        self._built: set[object] = set()

    def next(self, left_s: float = math.inf) -> Step | None:
        """The step that is worth most for its time; None where none is worth it, or fits into what is left of the budget."""
        worth = self._worth()
        fitting = [(gain / seconds, step) for gain, seconds, step in worth if seconds <= left_s]
        if not fitting:
            return None
        best, step = max(fitting, key=lambda each: each[0])
        return step

    def screened(self, option: Option, nats: float, *, build_s: float, score_s: float) -> None:
        """An option's divergence, and what it took; `build_s` is 0 where its artifact was there."""
        self.nats[option.name] = max(nats, BEST_NATS / 10)
        if build_s > 0:
            self._seconds[option.name] = build_s
        self._built.add(option.build)
        self._score_s.append(score_s)

    def estimate(self, nats: Mapping[str, float]) -> None:
        """Divergence of options that were not screened, as measured relatives let expect it, by name."""
        self.estimated_nats |= nats

    def timed(self, option: Option, speed: float, *, seconds: float) -> None:
        """An option's tokens a second, one stream and all in flight averaged geometrically."""
        self.speed[option.name] = speed
        self._score_s.append(seconds)

    def fail(self, option: Option) -> None:
        """It could not be built or run: it is not proposed again."""
        self.failed.add(option.name)

    def is_built(self, option: Option) -> bool:
        """Whether the artifact that serves an option is there, by all that was told."""
        return option.build in self._built

    def worthwhile(self) -> list[Step]:
        """Every step that is worth its time, were there enough of it."""
        return [step for _, _, step in self._worth()]

    def better_than(self, option: Option, clearly_faster: float) -> str | None:
        """A timed option that is so many times faster, and neither larger nor further from the source; None where none is."""
        own = self.speed.get(option.name)
        if own is None:
            return None
        rivals = (
            each
            for each in self.options
            if self.speed.get(each.name, 0.0) >= clearly_faster * own
            and self.nats[each.name] <= self.nats[option.name]
            and each.weights_mib <= option.weights_mib
        )
        return next((each.name for each in rivals), None)

    def predicted_nats(self, option: Option) -> float:
        """Divergence that is expected of an option."""
        mean, _ = DIVERGENCE.predict(self.options, self.nats, self.estimated_nats)
        return math.exp(mean[self.options.index(option)])

    def _worth(self) -> list[tuple[float, float, Step]]:
        """(gain, seconds, step) of every step that is worth its time."""
        if not self.options:
            return []
        nats = DIVERGENCE.predict(self.options, self.nats, self.estimated_nats)
        speed = SPEED.predict(self.options, self.speed)
        build_s, _ = BUILD_SECONDS.predict(self.options, self._seconds)
        fronts = self._fronts(speed[0])
        least = LEAST_GAIN * sum(hypervolume(front) for front in fronts)
        found = []
        for number, option in enumerate(self.options):
            kind = self._open_step(option)
            if kind is None:
                continue
            gain = self._gain(number, nats, speed, fronts)
            if gain > least:
                found.append((gain, self._step_seconds(option, kind, build_s[number]), Step(kind, option)))
        return found

    def _open_step(self, option: Option) -> StepKind | None:
        if option.name in self.failed or option.name in self.speed:
            return None
        return "time" if option.name in self.nats else "screen"

    def _step_seconds(self, option: Option, kind: StepKind, log_build_s: float) -> float:
        score_s = float(np.mean(self._score_s)) if self._score_s else option.score_s
        if kind == "time" or option.build in self._built:
            return score_s
        return score_s + math.exp(log_build_s)

    def is_near(self, option: Option) -> bool:
        """Whether a screened option's divergence is worth anything."""
        return self.nats[option.name] < self._reference_nats()

    def _reference_nats(self) -> float:
        limit = self.limit_nats
        return limit if limit is not None and min(self.nats.values(), default=math.inf) < limit else WORST_NATS

    def _goodness(self, nats: float) -> float:
        """Of a divergence: 0 at the reference, in logarithms."""
        return math.log(self._reference_nats() / max(nats, BEST_NATS))

    def _fronts(self, expected_speed: Floats) -> tuple[Sequence[Point], Sequence[Point]]:
        """Known points above the worst corner: (speed, goodness) and (smallness, goodness)."""
        self._slowest = float(expected_speed.min()) - 0.5
        self._largest = math.log(max(each.weights_mib for each in self.options)) + 0.1
        sizes = {each.name: each.weights_mib for each in self.options}
        fast = [
            (math.log(speed) - self._slowest, self._goodness(self.nats[name]))
            for name, speed in self.speed.items()
        ]
        small = [(self._largest - math.log(sizes[name]), self._goodness(n)) for name, n in self.nats.items()]
        return pareto(fast), pareto(small)

    def _gain(
        self,
        number: int,
        nats: tuple[Floats, Floats],
        speed: tuple[Floats, Floats],
        fronts: tuple[Sequence[Point], Sequence[Point]],
    ) -> float:
        """Expected growth of both fronts, were the option known."""
        option, (fast, small) = self.options[number], fronts
        is_screened = option.name in self.nats
        smallness = self._largest - math.log(option.weights_mib)
        nodes = ((0.0, 1.0),) if is_screened else tuple(zip(_NODES, _SHARES, strict=True))
        total = 0.0
        for node, share in nodes:
            expected = math.exp(nats[0][number] + node * nats[1][number])
            goodness = self._goodness(self.nats.get(option.name, expected))
            gained = 0.0 if is_screened else growth(small, (smallness, goodness))
            for other, part in zip(_NODES, _SHARES, strict=True):
                log_speed = speed[0][number] + other * speed[1][number] - self._slowest
                gained += part * growth(fast, (log_speed, goodness))
            total += share * gained
        return total


def pareto(points: Iterable[Point]) -> list[Point]:
    """Points that no other is at least as large as in both coordinates, the first coordinate rising."""
    best: list[Point] = []
    for point in sorted(set(points), reverse=True):
        if not best or point[1] > best[-1][1]:
            best.append(point)
    return best[::-1]


def hypervolume(front: Sequence[Point]) -> float:
    """Area between the axes and a front as `pareto` gives it; coordinates below 0 count as 0."""
    edges = [0.0, *(max(x, 0.0) for x, _ in front)]
    return sum(
        (right - left) * max(y, 0.0) for (left, right), (_, y) in zip(itertools.pairwise(edges), front, strict=True)
    )


def growth(front: Sequence[Point], point: Point) -> float:
    """Area that a point adds to a front."""
    if point[0] <= 0 or point[1] <= 0 or any(x >= point[0] and y >= point[1] for x, y in front):
        return 0.0
    return hypervolume(pareto([*front, point])) - hypervolume(front)


def mean_speed(decode_tokens_per_s: float, throughput_tokens_per_s: float) -> float:
    """One stream and all in flight, averaged geometrically: neither end may be bought with the other."""
    return math.sqrt(decode_tokens_per_s * throughput_tokens_per_s)


def front_of(nats: Mapping[str, float], speed: Mapping[str, float]) -> tuple[str, ...]:
    """Names of the timed options that no other is faster and less divergent than."""
    best = set(pareto((speed[name], -nats[name]) for name in speed if name in nats))
    return tuple(sorted(name for name in speed if name in nats and (speed[name], -nats[name]) in best))
