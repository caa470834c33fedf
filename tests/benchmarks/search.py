"""`make bench PART=search`: the search of the quantize stage against a random one, over a grid that was measured once.

Work: the demo model and a space of some thirty candidates on two engines; every one is built, screened on 16 sections and measured
(`search_grid`), and its seconds are recorded. Then the stage's strategy and a random search are replayed over the table with these
costs (`search_replay`). Compared are the hypervolumes of two fronts (speed and bytes against divergence) at equal times, and when the
candidate is found that the stage would choose of the whole grid. Our strategy draws nothing: its five runs differ in the
order in which the space is declared, and must not differ otherwise.

MINUTES (7) is what one run measures; run it again until the grid is whole, or with PARTIAL=1 to compare on what there is. REPLAY=1
replays the grid of docs/bench/search.json.
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
from tests.benchmarks.search_grid import GridRow, measure_grid, open_workspace, read_rows, space_options
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


def main() -> None:
    """Measure what is missing of the grid, replay, and write docs/bench/search.{json,md}."""
    workspace = open_workspace()
    options = space_options(workspace)
    if os.environ.get("REPLAY"):
        document = json.loads((FOLDER / "search.json").read_text(encoding="utf-8"))
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
    print(write("search", report, ratios, {"grid": raw}).read_text(encoding="utf-8"))


def _compared(
    grid: Grid, options: Sequence[Option]
) -> tuple[list[dict[str, object]], dict[str, dict[str, float]]]:
    whole_s, wanted = grid_s(grid, options), best(grid)
    mine = {seed: list(ours(grid, _shuffled(options, seed), None)) for seed in SEEDS}
    chance = {seed: list(at_random(grid, options, seed)) for seed in SEEDS}
    sides = {"keiryo": mine, "random": chance}
    report, ratios = [], {}
    for share in SHARES:
        for number, front in enumerate(("speed", "bytes")):
            values = {
                side: [areas(grid, runs[seed], share * whole_s)[number] for seed in SEEDS]
                for side, runs in sides.items()
            }
            work = f"hypervolume of {front} against KL at {share:.0%} of the grid's time"
            report += [row(side, work, "of the grid's", values[side]) for side in sides]
            gaps = sorted(a - b for a, b in zip(values["keiryo"], values["random"], strict=True))
            ratios[f"keiryo minus random, {front}, {share:.0%} (seeds: least to largest)"] = _spread(gaps)
    means = {side: [_mean_area(grid, run, whole_s) for run in runs.values()] for side, runs in sides.items()}
    work = "hypervolume of both fronts, mean over the grid's time"
    report += [row(side, work, "of the grid's", values) for side, values in means.items()]
    gaps = sorted(a - b for a, b in zip(means["keiryo"], means["random"], strict=True))
    ratios["keiryo minus random, both fronts, mean over the grid's time (seeds: least to largest)"] = _spread(
        gaps
    )
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


def _mean_area(grid: Grid, events: Sequence[Event], whole_s: float) -> float:
    """Of both fronts' hypervolumes, over fifty times that are evenly apart."""
    return statistics.mean(sum(areas(grid, events, step / 50 * whole_s)) / 2 for step in range(1, 51))


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
