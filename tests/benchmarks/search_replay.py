"""Searches over a measured grid, replayed with its recorded costs: the stage's own strategy, and a random order.

Both take the same steps at the same price: a build once, what it shares once, scoring, a short run. A random search screens and times
one option after another; it has nothing to decide by.
"""

import math
import random
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tasks.quantization.front import hypervolume, pareto, volume
from tasks.quantization.options import Option
from tasks.quantization.strategy import Step, Strategy
from tasks.release.candidate import mean_speed
from tests.benchmarks.search_grid import GridRow

Grid = Mapping[str, GridRow]
MARGIN_NATS, MARGIN_PERPLEXITY = 0.02, 0.02


@dataclass
class Clock:
    """What a search has paid for so far, seconds."""

    grid: Grid
    now_s: float = 0.0
    _paid: set[str] = field(default_factory=set)

    def pay(self, step: Step) -> float:
        """The step's price; what was built for it is there from now on. Returns the part of the build."""
        row = self.grid[step.option.name]
        if step.kind == "time":
            self.now_s += row.speed_s
            return 0.0
        parts = row.shared | {
            row.build: max(each.build_s for each in self.grid.values() if each.build == row.build)
        }
        build_s = sum(seconds for name, seconds in parts.items() if name not in self._paid)
        self._paid |= set(parts)
        self.now_s += build_s + row.screen_s
        return build_s


@dataclass(frozen=True)
class Event:
    """A step that ended at a time, seconds from the start."""

    at_s: float
    step: Step


def ours(grid: Grid, options: Iterable[Option], limit_nats: float | None) -> Iterator[Event]:
    """The strategy of the stage, told what the table says."""
    strategy, clock = Strategy(options, limit_nats=limit_nats), Clock(grid)
    while (step := strategy.next()) is not None:
        row, build_s = grid[step.option.name], clock.pay(step)
        if step.kind == "screen":
            strategy.screened(step.option, row.nats, build_s=build_s, score_s=row.screen_s)
        else:
            speed = mean_speed(row.decode, row.throughput)
            strategy.timed(step.option, speed, seconds=row.speed_s)
        yield Event(clock.now_s, step)


def at_random(grid: Grid, options: Iterable[Option], seed: int) -> Iterator[Event]:
    """Every option in a drawn order."""
    clock, order = Clock(grid), sorted(options, key=lambda each: each.name)
    random.Random(seed).shuffle(order)
    for option in order:
        for step in (Step("screen", option), Step("time", option)):
            clock.pay(step)
            yield Event(clock.now_s, step)


def grid_s(grid: Grid, options: Iterable[Option]) -> float:
    """What the whole grid costs, in whatever order."""
    return max(event.at_s for event in at_random(grid, options, 0))


def best(grid: Grid) -> str:
    """What the stage would choose of the whole grid: the fastest whose screen is within the margins."""
    return max(filter(_is_within, grid.values()), key=_speed).name


def best_speed(grid: Grid, events: Sequence[Event], at_s: float) -> float:
    """Speed of the fastest within the margins that was timed by then, over that of the whole grid's; 0 where none was."""
    timed = (grid[each.step.option.name] for each in events if each.step.kind == "time" and each.at_s <= at_s)
    return max(map(_speed, filter(_is_within, timed)), default=0.0) / _speed(grid[best(grid)])


def found_s(events: Sequence[Event], name: str) -> float:
    """When an option had been screened and timed; infinite where it never was."""
    return next(
        (each.at_s for each in events if each.step.kind == "time" and each.step.option.name == name), math.inf
    )


def _is_within(row: GridRow) -> bool:
    return row.nats <= MARGIN_NATS and row.perplexity_fraction <= MARGIN_PERPLEXITY


def _speed(row: GridRow) -> float:
    """What it is worth: by the full measurements, where there are any."""
    runs = row.full or ((row.decode, row.throughput),)
    return math.exp(statistics.mean(math.log(mean_speed(*run)) for run in runs))


def areas(grid: Grid, events: Sequence[Event], at_s: float) -> tuple[float, float, float]:
    """Hypervolume at a time of speed against divergence, of bytes against divergence, and of all three, over the whole grid's."""
    known = [event.step for event in events if event.at_s <= at_s]
    timed = [grid[step.option.name] for step in known if step.kind == "time"]
    screened = [grid[step.option.name] for step in known if step.kind == "screen"]
    every = list(grid.values())
    return (
        hypervolume(pareto(_fast(timed, every))) / hypervolume(pareto(_fast(every, every))),
        hypervolume(pareto(_small(screened, every))) / hypervolume(pareto(_small(every, every))),
        volume(_worth(timed, every)) / volume(_worth(every, every)),
    )


def _fast(rows: Sequence[GridRow], every: Sequence[GridRow]) -> list[tuple[float, float]]:
    return [(fast, near) for fast, _, near in _worth(rows, every)]


def _small(rows: Sequence[GridRow], every: Sequence[GridRow]) -> list[tuple[float, float]]:
    return [(small, near) for _, small, near in _worth(rows, every)]


def _worth(rows: Sequence[GridRow], every: Sequence[GridRow]) -> list[tuple[float, float, float]]:
    """Speed, smallness and nearness to the source: logarithms above what is a tenth worse than the worst of the grid."""
    slowest = 0.9 * min(map(_speed, every))
    largest = 1.1 * max(row.size_bytes for row in every)
    furthest = 1.1 * max(row.nats for row in every)
    return [
        (math.log(_speed(row) / slowest), math.log(largest / row.size_bytes), math.log(furthest / row.nats))
        for row in rows
    ]
