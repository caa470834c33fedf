"""In which order the points of a space are tried, and which of them not at all: the cheapest information first.

What a screen costs is its build, and builds differ by a factor of twenty: rounding to nearest takes seconds, AWQ and GPTQ minutes,
another cache type for a built artifact nothing. So rungs by the amount of text, as in plain successive halving, save nothing; here the
rungs are the formats themselves. What is known so far predicts what every other option would come out at (`prediction`), and the next
step is the one whose expected gain of the front is largest for its predicted seconds, those of the short run that turns a screen into a
gain of speed among them: the expected hypervolume improvement (Emmerich
et al. 2006), of the front of speed against divergence plus that of bytes against divergence, in logarithms. Where no limit says what is
wanted and neither front has anything to gain, what all three objectives together enclose is filled. Before a format that takes
minutes, its round-to-nearest relative is screened: it says whether the minutes are worth it.

An option takes two steps: "screen" (build it, score the search text) and "time" (a short run of requests). Once something known is
within the limit of divergence, what lies beyond the limit is worth nothing, however fast. What is expected to add nothing is not tried.

The strategy is pure: it proposes a step, is told what came out, and proposes the next. The stage runs the steps, and the benchmark
replays a table over the same code. Nothing is drawn by chance, and options are ordered by name: the same figures give the same steps.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tasks.quantization.front import BEST_NATS, Corner, Point, growth, hypervolume, pareto, volume
from tasks.quantization.options import Option
from tasks.quantization.prediction import BUILD_SECONDS, DIVERGENCE, SPEED, Floats

LEAST_GAIN = 0.0005
"""Of the front's hypervolume: what is expected to add less is not tried."""
LEAST_FILLING = 1e-5
"""Of what all three objectives enclose: nothing else is left to try for then."""
FAR_CHEAPER = 2.0
"""So many times less must a relative take to be tried first."""
WORST_NATS = 3.0
"""Divergence that is worth nothing, where no limit says so."""
_NODES, _SHARES = (-math.sqrt(3), 0.0, math.sqrt(3)), (1 / 6, 2 / 3, 1 / 6)
"""Gauss-Hermite quadrature of a normal distribution, three points."""

StepKind = Literal["screen", "time"]
Fronts = tuple[Sequence[Point], Sequence[Point]]
Expected = tuple[float, float]
"""Mean and standard deviation of a logarithm."""


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
        self._estimated_nats: dict[str, float] = {}
        self._build_s: dict[str, float] = {}
        self._score_s: list[float] = []
        self._time_s: list[float] = []
        self._built: set[object] = set()
        self._failed: set[str] = set()

    def next(self, left_s: float = math.inf) -> Step | None:
        """The step that is worth most for its time; None where none is worth it, or fits into what is left of the budget."""
        seconds = self._expected_seconds()
        of_fronts = (
            [each for each in found if seconds[each[1].option.name] <= left_s] for found in self._worth()
        )
        fitting = next(filter(None, of_fronts), None)
        if fitting is None:
            return None
        run_s = self._expected_run_s()
        _, best = max(
            fitting,
            key=lambda each: each[0] / (seconds[each[1].option.name] + run_s * (each[1].kind == "screen")),
        )
        relative = self._cheap_relative(best.option, seconds) if best.kind == "screen" else None
        return best if relative is None else Step("screen", relative)

    def screened(self, option: Option, nats: float, *, build_s: float, score_s: float) -> None:
        """An option's divergence, and what it took; `build_s` is 0 where its artifact was there."""
        self.nats[option.name] = max(nats, BEST_NATS / 10)
        if build_s > 0:
            self._build_s[option.name] = build_s
        self._built.add(option.build)
        self._score_s.append(score_s)

    def timed(self, option: Option, speed: float, *, seconds: float) -> None:
        """An option's tokens a second, one stream and all in flight averaged geometrically."""
        self.speed[option.name] = speed
        self._time_s.append(seconds)

    def estimate(self, nats: Mapping[str, float]) -> None:
        """Divergence of options that were not screened, as measured relatives let expect it, by name."""
        self._estimated_nats |= nats

    def close(self, option: Option) -> None:
        """It is not to be proposed again: it could not be built or run, or somebody else cares for it."""
        self._failed.add(option.name)

    def is_built(self, option: Option) -> bool:
        """Whether the artifact that serves an option is there, by all that was told."""
        return option.build in self._built

    def is_near(self, option: Option) -> bool:
        """Whether a screened option's divergence is worth anything."""
        return self.nats[option.name] < self._worst_nats()

    def worthwhile(self) -> list[Step]:
        """Every step that is worth its time, were there enough of it."""
        return list({step.option.name: step for found in self._worth() for _, step in found}.values())

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
        mean, _ = DIVERGENCE.predict(self.options, self.nats, self._estimated_nats)
        return math.exp(mean[self.options.index(option)])

    def _worth(self) -> Iterator[list[tuple[float, Step]]]:
        """Every step whose expected gain counts, with that gain: of the two fronts, then of all three objectives."""
        if not self.options:
            return
        nats = DIVERGENCE.predict(self.options, self.nats, self._estimated_nats)
        speed = SPEED.predict(self.options, self.speed)
        corner = self._corner(speed[0])

        steps = [
            (Step(kind, option), self._outcomes(option, (nats[0][n], nats[1][n]), (speed[0][n], speed[1][n])))
            for n, option in enumerate(self.options)
            if (kind := self._open_step(option)) is not None
        ]

        def beyond(least: float, grown: Callable[[Option, float, float], float]) -> list[tuple[float, Step]]:
            gains = (
                (sum(share * grown(step.option, *figures) for share, *figures in outcomes), step)
                for step, outcomes in steps
            )
            return [(gain, step) for gain, step in gains if gain > least]

        fast, small = self._fronts(corner)

        def of_fronts(option: Option, log_speed: float, nats: float) -> float:
            is_new = option.name not in self.nats
            grown = growth(small, corner.small(option.weights_mib, nats)) if is_new else 0.0
            return grown + growth(fast, corner.fast(log_speed, nats))

        yield beyond(LEAST_GAIN * (hypervolume(fast) + hypervolume(small)), of_fronts)
        if self.limit_nats is not None:
            return
        known = [
            corner.all_three(math.log(self.speed[each.name]), each.weights_mib, self.nats[each.name])
            for each in self.options
            if each.name in self.speed
        ]
        enclosed = volume(known)

        def of_all_three(option: Option, log_speed: float, nats: float) -> float:
            return volume([*known, corner.all_three(log_speed, option.weights_mib, nats)]) - enclosed

        yield beyond(LEAST_FILLING * enclosed, of_all_three)

    def _outcomes(
        self, option: Option, log_nats: Expected, log_speed: Expected
    ) -> list[tuple[float, float, float]]:
        """What an option may come out at, as (share, logarithm of the speed, divergence)."""
        known = self.nats.get(option.name)
        diverging = _nodes(*log_nats) if known is None else [(1.0, math.log(known))]
        return [
            (share * part, speed, math.exp(nats))
            for share, nats in diverging
            for part, speed in _nodes(*log_speed)
        ]

    def _open_step(self, option: Option) -> StepKind | None:
        if option.name in self._failed or option.name in self.speed:
            return None
        return "time" if option.name in self.nats else "screen"

    def _expected_seconds(self) -> dict[str, float]:
        """Of the next step of every option, by name."""
        build_s, _ = BUILD_SECONDS.predict(self.options, self._build_s)
        run_s, found = self._expected_run_s(), {}
        for option, log_build_s in zip(self.options, build_s, strict=True):
            score_s = float(np.mean(self._score_s)) if self._score_s else option.score_s
            screen_s = score_s + (0.0 if self.is_built(option) else math.exp(log_build_s))
            found[option.name] = run_s if option.name in self.nats else screen_s
        return found

    def _expected_run_s(self) -> float:
        """Of a short run; before the first one, of scoring."""
        known = self._time_s or self._score_s or [each.score_s for each in self.options]
        return float(np.mean(known))

    def _cheap_relative(self, option: Option, seconds: Mapping[str, float]) -> Option | None:
        """The same format rounded to nearest, where that is far cheaper to try and none of its kind is known yet."""
        family = [each for each in self.options if each.family == option.family and each.is_nearest]
        if option.is_nearest or any(each.name in self.nats for each in family):
            return None
        cheap = [
            each
            for each in family
            if each.name not in self._failed and seconds[each.name] * FAR_CHEAPER <= seconds[option.name]
        ]
        return min(cheap, key=lambda each: (each.engine != option.engine, seconds[each.name]), default=None)

    def _worst_nats(self) -> float:
        limit = self.limit_nats
        return (
            limit if limit is not None and min(self.nats.values(), default=math.inf) < limit else WORST_NATS
        )

    def _corner(self, expected_log_speed: Floats) -> Corner:
        """A little slower and larger than anything in the space."""
        largest = max(each.weights_mib for each in self.options)
        return Corner(float(expected_log_speed.min()) - 0.5, 1.1 * largest, self._worst_nats())

    def _fronts(self, corner: Corner) -> Fronts:
        """Of what is known."""
        fast = (corner.fast(math.log(speed), self.nats[name]) for name, speed in self.speed.items())
        small = (
            corner.small(each.weights_mib, self.nats[each.name])
            for each in self.options
            if each.name in self.nats
        )
        return pareto(fast), pareto(small)


def _nodes(mean: float, deviation: float) -> list[tuple[float, float]]:
    """(share, value) of a normal quantity at the nodes of the quadrature."""
    return [(share, mean + node * deviation) for share, node in zip(_SHARES, _NODES, strict=True)]
