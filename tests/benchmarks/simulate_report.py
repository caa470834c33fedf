"""The report of the gate's simulation: every rate with its interval, the claims beside it, and a plot."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from statsmodels.stats.proportion import proportion_confint

from tasks.profiling.environment import environment
from tasks.store.digest import library_versions
from tests.benchmarks.report_file import FOLDER

LIBRARIES = ("numpy", "scipy", "statsmodels")
COLOURS = {
    "keiryo": "#1b6ca8",
    "keiryo_sequential": "#2a9d8f",
    "keiryo_obrien-fleming": "#62b6cb",
    "keiryo_confidence-sequence": "#8d99ae",
    "keiryo_without_correction": "#b8b8b8",
    "naive_threshold": "#d1495b",
    "unpaired_z": "#edae49",
    "unpaired_margin": "#66545e",
}
Curves = Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True)
class Row:
    """One simulated rate.

    Attributes:
        name: gate, metric and rate, separated by slashes.
        work: what was drawn.
        unit: "fraction" of the trials, or "share" of items.
        median: the rate.
        ci_low: lower end of its 95 % interval.
        ci_high: upper end.
        trials: number of draws.
        least: what is claimed to be the least; None without such a claim.
        most: what is claimed to be the most.
        theory: the rate by calculation, where there is one.
        is_exact: whether that is exact: a sum over every outcome; otherwise it is the planner's walk.
        met: whether the claim is met, by the exact rate where there is one; None without a claim.
    """

    name: str
    work: str
    unit: str
    median: float
    ci_low: float
    ci_high: float
    trials: int
    least: float | None
    most: float | None
    theory: float | None
    is_exact: bool
    met: bool | None


def rate(
    name: str,
    work: str,
    happened: NDArray[np.bool_] | NDArray[np.float64],
    *,
    least: float | None = None,
    most: float | None = None,
    exact: float | None = None,
    planned: float | None = None,
) -> Row:
    """The share of trials in which something happened, or the mean of a share, with its 95 % interval."""
    mean, trials = float(happened.mean()), happened.size
    if happened.dtype == np.bool_:
        low, high = proportion_confint(int(happened.sum()), trials, method="beta")
    else:
        half = 1.96 * float(happened.std(ddof=1)) / trials**0.5
        low, high = mean - half, mean + half
    met = None
    if least is not None or most is not None:
        best, worst = (high, low) if exact is None else (exact, exact)
        met = (least is None or best >= least) and (most is None or worst <= most)
        met &= least != 1.0 or mean == 1.0  # what always holds leaves no room for chance
    unit = "fraction" if happened.dtype == np.bool_ else "share"
    theory = planned if exact is None else exact
    return Row(
        name, work, unit, mean, float(low), float(high), trials, least, most, theory, exact is not None, met
    )


def write_report(rows: Sequence[Row], curves: Curves) -> str:
    """Write docs/bench/simulate.{json,md,svg}; returns the readable one."""
    machine, date = environment(), datetime.now(UTC).date().isoformat()
    document = {
        "part": "simulate",
        "machine": machine,
        "date": date,
        "versions": library_versions(*LIBRARIES),
        "rows": [{**asdict(row), "runs": [row.median]} for row in rows],
        "ratios": {},
        "curves": {name: list(points) for name, points in curves.items()},
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "simulate.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    _plot(rows, curves)
    text = "\n".join([*_head(rows, date), *_gates(rows), *_coverage(rows), ""])
    (FOLDER / "simulate.md").write_text(text, encoding="utf-8")
    return text


def _head(rows: Sequence[Row], date: str) -> list[str]:
    claims = [row for row in rows if row.met is not None]
    missed = [row for row in claims if not row.met]
    return [
        "# simulate",
        "",
        f"{date}. Error rates of the quality gate on candidates whose truth is known: `make bench PART=simulate`, seeded.",
        f"{sum(bool(row.met) for row in claims)} of {len(claims)} claims met. A claim counts as met by the exact rate (summed",
        "over every outcome) where there is one, else where the 95 % interval of the simulated rate reaches the claimed limit. All",
        "rates are in `simulate.json`.",
        "",
        *(f"- not met: {row.name}, {row.work}: {_percent(row)}, claimed {_claim(row)}" for row in missed),
        *([""] if missed else []),
        "![Error rates](simulate.svg)",
        "",
    ]


def _gates(rows: Sequence[Row]) -> list[str]:
    lines = [
        "## Gates on the same draws",
        "",
        "`naive_threshold`: the two accuracies as if they were exact. `unpaired_z`: lm-eval's model comparator, a two-sample z",
        "test of no difference at 5 %; what it does not find significant is accepted. `unpaired_margin`: a non-inferiority test",
        "with the same unpaired errors. Truth: one task exactly the margin worse (false accept, false fail), or all equal",
        "(false reject). `items_of_one_look`: items judged on average, over those that one look of the same power needs.",
        "`keiryo_sequential`: the default, looks planned for the fewest items; the other two kinds under their own names.",
        "",
        "| rate | drawn | simulated | 95 % interval | exact | claimed | met |",
        "|---|---|---:|---|---:|---|---|",
    ]
    for row in rows:
        if row.name.startswith("keiryo/") and row.name.split("/")[1] not in ("accuracy", "ladder"):
            continue
        if row.name.startswith("keiryo/accuracy/") and row.name.split("/")[2] not in (
            "false_accept",
            "false_reject",
            "false_fail",
        ):
            continue
        exact = "" if row.theory is None else f"{row.theory:.2%}{'' if row.is_exact else ' (planned)'}"
        met = {None: "", True: "yes", False: "**no**"}[row.met]
        lines.append(
            f"| {row.name} | {row.work} | {row.median:.2%} | {row.ci_low:.2%} to {row.ci_high:.2%} | {exact} "
            f"| {_claim(row)} | {met} |"
        )
    return lines


def _coverage(rows: Sequence[Row]) -> list[str]:
    groups: dict[tuple[str, bool], list[Row]] = defaultdict(list)
    for row in rows:
        if row.name.startswith("keiryo/") and row.name.rsplit("/", 1)[1] in SIDES:
            groups[row.name, row.met is not None].append(row)
    lines = [
        "",
        "## Intervals, by cell",
        "",
        "Coverage of the two-sided 95 % interval (claimed: at least 94 %) and size of each limit at one-sided 5 % (claimed: at",
        "most 5.5 %), in cells with at least 20 expected changes. Worst: of the exact rates for accuracy, of the",
        "simulated ones elsewhere. Cells without a claim are what remains: changes that come in whole clusters (correlation 0.4, or",
        "0.2 and all of them losses).",
        "",
        "| rate | cells | mean | worst | worst cell | cells met |",
        "|---|---:|---:|---:|---|---:|",
    ]
    for (name, claimed), found in sorted(groups.items(), key=lambda item: (not item[0][1], item[0][0])):
        worst = (min if name.endswith("coverage") else max)(found, key=_best_known)
        met = f"{sum(bool(row.met) for row in found)}" if claimed else "no claim"
        mean = float(np.mean([_best_known(row) for row in found]))
        lines.append(
            f"| {name} | {len(found)} | {mean:.2%} | {_best_known(worst):.2%} | {worst.work} | {met} |"
        )
    return lines


SIDES = ("coverage", "upper limit below the truth", "lower limit above the truth")


def _percent(row: Row) -> str:
    return f"{row.median:.2%} ({row.ci_low:.2%} to {row.ci_high:.2%})"


def _best_known(row: Row) -> float:
    return row.theory if row.is_exact and row.theory is not None else row.median


def _claim(row: Row) -> str:
    if row.most is not None:
        return f"at most {row.most:.4g}"
    return "" if row.least is None else f"at least {row.least:.4g}"


def _plot(rows: Sequence[Row], curves: Curves) -> None:
    plt.rcParams["svg.hashsalt"] = "keiryo"
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    _plot_curves(left, curves)
    _plot_cells(right, rows)
    figure.savefig(FOLDER / "simulate.svg", metadata={"Date": None})
    plt.close(figure)


def _plot_curves(axes: Axes, curves: Curves) -> None:
    for name, points in curves.items():
        losses, chances = zip(*points, strict=True)
        axes.plot(100 * np.array(losses), 100 * np.array(chances), label=name, color=COLOURS[name])
    axes.axvline(2, color="#999999", linewidth=0.8)
    axes.axhline(5, color="#999999", linewidth=0.8, linestyle=":")
    axes.set(
        xlabel="true loss of accuracy, points (margin 2)", ylabel="accepted, %", title="Who is let through"
    )
    axes.legend(fontsize=8, loc="center left")


def _plot_cells(axes: Axes, rows: Sequence[Row]) -> None:
    found = [row for row in rows if row.name.endswith("/coverage")]
    names = list(dict.fromkeys(row.name.split("/")[1] for row in found))
    for row in found:
        at = names.index(row.name.split("/")[1])
        others = [other for other in found if other.name == row.name]
        shift = (others.index(row) / max(len(others) - 1, 1) - 0.5) * 0.7
        filled = COLOURS["keiryo"] if row.met is not None else "none"
        axes.errorbar(
            at + shift, 100 * row.median, yerr=[[100 * (row.median - row.ci_low)], [100 * (row.ci_high - row.median)]],
            fmt="o", markersize=3.5, linewidth=0.6, color=COLOURS["keiryo"], markerfacecolor=filled,
        )  # fmt: skip
    axes.axhline(94, color="#999999", linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set(ylabel="coverage of the 95 % interval, %", title="Intervals, a dot a cell (hollow: no claim)")
