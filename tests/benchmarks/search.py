"""`make bench PART=search`: the search of the quantize stage against a random one, over a grid that was measured once.

Work: the demo model and a space of some thirty candidates on two engines; every one is built, screened on 16 sections and measured
(`search_grid`), and its seconds are recorded. Then the stage's strategy and a random search are replayed over the table with these
costs (`search_replay`). Compared are hypervolumes at equal times, of the front of speed, bytes and divergence and of its two sides
(speed and bytes against divergence), and when the candidate is found that the stage would choose of the whole grid. A search is told
the short runs; what it found is counted by full measurements. Our strategy draws nothing: its five runs differ in the order in which
the space is declared, and must not differ otherwise. Five random orders stand beside it, and the share of MANY that it is not behind.

SPACE=second takes another space than that by which numbers of the strategy were chosen. MINUTES (7) is what one run measures; run it
again until the grid is whole, or with PARTIAL=1 to compare on what there is. REPLAY=1 replays the grid of docs/bench.
"""

import json
import os
import random
import statistics
import sys
from collections.abc import Sequence

from tasks.quantization.options import Option
from tasks.quantization.survivors import SLACK
from tests.benchmarks.report_file import FOLDER, row, write
from tests.benchmarks.search_grid import (
    SPACE,
    GridRow,
    measure_grid,
    open_workspace,
    read_rows,
    space_options,
)
from tests.benchmarks.search_replay import (
    MARGIN_NATS,
    Event,
    Grid,
    areas,
    at_random,
    best,
    best_speed,
    found_s,
    grid_s,
    ours,
)

SEEDS = range(5)
SHARES = (0.05, 0.1, 0.2, 0.33, 0.5, 0.75, 1.0)
"""Of the grid's time."""
FRONTS = ("speed against KL", "bytes against KL", "speed, bytes and KL")
MANY = 200
"""Random orders."""
NAME = "search" if SPACE == "first" else f"search_{SPACE}"
"""Of the report."""


def main() -> None:
    """Measure what is missing of the grid, replay, and write docs/bench/search.{json,md}."""
    workspace = open_workspace()
    options = space_options(workspace)
    if os.environ.get("REPLAY"):
        document = json.loads((FOLDER / f"{NAME}.json").read_text(encoding="utf-8"))
        rows = [GridRow.model_validate(each) for each in document["grid"]]
    else:
        whole = measure_grid(workspace, float(os.environ.get("MINUTES", "7")))
        if not whole and not os.environ.get("PARTIAL"):
            sys.exit(
                "the grid is not whole yet; run this again to go on, or with PARTIAL=1 for what there is"
            )
        rows = read_rows(workspace)
    grid = {each.name: each for each in rows}
    known = [each for each in options if each.name in grid]
    report, ratios = _compared(grid, known)
    raw = [each.model_dump() for each in rows]
    print(write(NAME, report, ratios, {"grid": raw}).read_text(encoding="utf-8"))


def _compared(
    grid: Grid, options: Sequence[Option]
) -> tuple[list[dict[str, object]], dict[str, dict[str, float]]]:
    whole_s, wanted = grid_s(grid, options), best(grid)
    mine = {seed: list(ours(grid, _shuffled(options, seed), None)) for seed in SEEDS}
    chance = {seed: list(at_random(grid, options, seed)) for seed in SEEDS}
    sides = {"keiryo": mine, "random": chance}
    report, ratios = [], {}
    for share in SHARES:
        for number, front in enumerate(FRONTS):
            values = {
                side: [areas(grid, runs[seed], share * whole_s)[number] for seed in SEEDS]
                for side, runs in sides.items()
            }
            work = f"hypervolume of {front} at {share:.0%} of the grid's time"
            report += [row(side, work, "of the grid's", values[side]) for side in sides]
            gaps = sorted(a - b for a, b in zip(values["keiryo"], values["random"], strict=True))
            ratios[f"keiryo minus random, {front}, {share:.0%} (seeds: least to largest)"] = _spread(gaps)
    many = (list(at_random(grid, options, seed)) for seed in range(MANY))
    means = {side: [_mean_areas(grid, run, whole_s) for run in runs.values()] for side, runs in sides.items()}
    means["many"] = [_mean_areas(grid, run, whole_s) for run in many]
    for number, front in enumerate(FRONTS):
        of = {side: [each[number] for each in found] for side, found in means.items()}
        work = f"hypervolume of {front}, mean over the grid's time"
        report += [row(side, work, "of the grid's", of[side]) for side in sides]
        gaps = sorted(a - b for a, b in zip(of["keiryo"], of["random"], strict=True))
        ratios[f"keiryo minus random, {front}, mean over the time (seeds: least to largest)"] = _spread(gaps)
        ahead = statistics.mean(each <= of["keiryo"][0] for each in of["many"])
        report.append(row("keiryo", f"{work}: at or above so many random orders", f"of {MANY}", [ahead]))
    gated = {seed: list(ours(grid, _shuffled(options, seed), SLACK * MARGIN_NATS)) for seed in SEEDS}
    for side, runs in {"keiryo": mine, "keiryo, with the margin": gated, "random": chance}.items():
        times = [found_s(runs[seed], wanted) / whole_s for seed in SEEDS]
        report.append(
            row(
                side, f"time to {wanted}, the grid's best within {MARGIN_NATS:g} nats", "of the grid's", times
            )
        )
        speeds = [best_speed(grid, runs[seed], whole_s / 3) for seed in SEEDS]
        report.append(
            row(side, "speed of the best it has at a third of the time", "of the grid's best", speeds)
        )
        ends = [runs[seed][-1].at_s / whole_s for seed in SEEDS]
        report.append(row(side, "time to its own end", "of the grid's", ends))
    report.append(row("grid", f"{len(grid)} candidates, builds, screens and short runs", "s", [whole_s]))
    report += _costs(grid)
    return report, ratios


def _mean_areas(grid: Grid, events: Sequence[Event], whole_s: float) -> tuple[float, ...]:
    """Of each front's hypervolumes, over fifty times that are evenly apart."""
    found = [areas(grid, events, step / 50 * whole_s) for step in range(1, 51)]
    return tuple(map(statistics.mean, zip(*found, strict=True)))


def _costs(grid: Grid) -> list[dict[str, object]]:
    """What the parts of a step take, over the grid."""
    rows = list(grid.values())
    parts = {
        "build, to nearest": [each.build_s for each in rows if each.build_s and "'none'" in each.build],
        "build, calibrated": [
            each.build_s + sum(each.shared.values())
            for each in rows
            if each.build_s and "'none'" not in each.build
        ],
        "screen": [each.screen_s for each in rows],
        "short run": [each.speed_s for each in rows],
    }
    return [row("grid", what, "s", seconds) for what, seconds in parts.items() if seconds]


def _shuffled(options: Sequence[Option], seed: int) -> list[Option]:
    order = list(options)
    random.Random(seed).shuffle(order)
    return order


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "ci_low": values[0], "ci_high": values[-1]}


if __name__ == "__main__":
    main()
