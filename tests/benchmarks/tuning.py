"""`make bench PART=tuning`: the search over scheduler settings against the full grid, which is measured once.

Work: the load of `make bench PART=serve` (Azure trace, own prompts, 100 % of what OpenVINO GenAI's default settings answer), the demo
model in int8 and that benchmark's grid. Every setting is measured in `full_pairs` interleaved pairs against the schema's default
scheduler: the full grid. Then the stage's search is replayed DRAWS times, each time on the recorded pairs in another random order, so
that it pays what it would have paid and sees noise as it was. Its cost is a share of the grid's pairs; its result is looked up in the
whole grid. Replays of one recording share its noise: their spread says how the search depends on the order of pairs, not how grids
differ.
"""

import math
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from configs.schema import BatchingSettings
from configs.weights import WeightSettings
from flows.offline import prepare_environment
from tasks.batching.contest import Contest
from tasks.batching.halving import search
from tasks.batching.tune import scheduler_options
from tasks.release.measuring import make_candidate
from tasks.release.preparation import make_workspace
from tests.benchmarks.report_file import row, write
from tests.benchmarks.serve import GRIDS, INT8, TRACE, TUNED_LOAD_RUNS, TUNING, at_capacity, config_of

DRAWS = int(os.environ.get("DRAWS", "1000"))
NEAR = 0.95  # of the grid's best goodput
GRID = "own prompts"
Recorded = Mapping[str, Sequence[float]]


def main() -> None:
    """Measure the grid and write docs/bench/tuning.{json,md}."""
    if not TRACE.is_file():
        sys.exit("the data folder shared/data is not beside the project; this benchmark needs its trace")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(os.environ.get("KEIRYO_HOME", folder))
        os.environ["KEIRYO_HOME"] = str(home)
        prepare_environment(home, hub=False, threads=2)
        recorded = _full_grid()
    rows = [
        row(name, "goodput over the schema's default scheduler", "x", [math.exp(each) for each in pairs])
        for name, pairs in sorted(recorded.items(), key=lambda pair: -statistics.fmean(pair[1]))
    ]
    costs, found = _replayed(recorded)
    rows += [
        row("search", "pairs, of the full grid's", "%", [100 * each for each in costs]),
        row("search", "goodput of what it found, of the grid's best", "%", [100 * each for each in found]),
        row(
            "search",
            f"replays within {1 - NEAR:.0%} of the grid's best",
            "%",
            [100 * statistics.fmean(each >= NEAR for each in found)],
        ),
    ]
    print(write("tuning", rows, {}, {"log_ratios": dict(recorded)}).read_text(encoding="utf-8"))


def _full_grid() -> Recorded:
    """All pairs of all settings, a pair of each in turn, so that the machine's drift meets them alike."""
    workspace = make_workspace(config_of(GRID))
    int8 = make_candidate(workspace, workspace.source, INT8, WeightSettings(bits=8, symmetric=False))
    workspace, _ = at_capacity(workspace, int8)
    options = scheduler_options(int8, BatchingSettings(grid=GRIDS[GRID], tuning=TUNING))
    pairs: dict[str, list[float]] = {name: [] for name in options}
    with Contest(workspace, int8, options, first_slot=TUNED_LOAD_RUNS) as contest:
        for _ in range(TUNING.full_pairs // 2):
            for name in options:
                pairs[name] += contest.pairs(name, 2)
    return {name: found for name, found in pairs.items() if found}


def _replayed(recorded: Recorded) -> tuple[list[float], list[float]]:
    """Cost and result of the search, in shares of the full grid's, once for each draw."""
    means = {name: statistics.fmean(pairs) for name, pairs in recorded.items()}
    best = max(means.values())
    costs, results = [], []
    for seed in range(DRAWS):
        left = {name: _shuffled(pairs, f"{seed}:{name}") for name, pairs in recorded.items()}

        def measure(name: str, count: int, left: dict[str, list[float]] = left) -> list[float]:
            taken, left[name] = left[name][:count], left[name][count:]
            return taken

        made = search(list(recorded), TUNING, measure)
        costs.append(made.cost_fraction)
        results.append(math.exp(means[made.tried[0].name] - best))
    return costs, results


def _shuffled(pairs: Sequence[float], seed: str) -> list[float]:
    order = list(pairs)
    random.Random(seed).shuffle(order)
    return order


if __name__ == "__main__":
    main()
