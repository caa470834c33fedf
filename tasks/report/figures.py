"""The figures of a rollout as SVG."""

import math
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tasks.quality.verdict import MetricVerdict
from tasks.release.evidence import Evidence
from tasks.release.ledger import Ledger, LedgerRow
from tasks.release.metrics import delta
from tasks.release.stage_result import StageResult
from tasks.report.load_figures import draw_load
from tasks.report.search_figures import draw_pareto, draw_sensitivity, sensitive
from tasks.report.svg import BLUE, GREEN, GREY, INK, ORANGE, RED, draw_svg

_VERDICT_COLOURS = {"PASS": GREEN, "FAIL": RED, "INCONCLUSIVE": ORANGE}


def draw_figures(evidence: Evidence) -> dict[str, str]:
    """Every figure that the evidence has data for: file name to SVG, in the order of the report."""
    judged = [result for result in evidence.results if result.gate is not None and result.gate.metrics]
    measured = [result for result in evidence.results if result.measurement is not None]
    tried = [each for result in evidence.results for each in result.candidates if "kl_nats" in each.screen]
    figures: dict[str, str] = {}
    if evidence.ledger is not None and evidence.ledger.rows:
        figures["ledger-waterfall.svg"] = draw_svg("waterfall", 3.0, lambda f: _waterfall(f, evidence.ledger))
    if judged:
        figures["gate-forest.svg"] = draw_forest(judged)
    if any(each.measurement is not None for each in tried):
        released = {result.proposal.name for result in evidence.results if result.kept and result.proposal}
        margin = evidence.config.quality.margins.kl_nats
        figures["pareto-front.svg"] = draw_svg(
            "pareto", 3.6, lambda f: draw_pareto(f, tried, released, margin)
        )
    if searched := sensitive(tried):
        height = 0.4 + 2.4 * len(searched)
        figures["layer-sensitivity.svg"] = draw_svg(
            "sensitivity", height, lambda f: draw_sensitivity(f, searched)
        )
    if measured:
        height = 1.1 + 0.42 * len(measured)
        figures["latency-percentiles.svg"] = draw_svg("latency", height, lambda f: _latency(f, measured))
        figures["memory-predicted.svg"] = draw_svg("memory", height, lambda f: _memory(f, measured))
    for result in evidence.results:
        if result.load is not None:
            figures |= draw_load(result.load)
    return figures


def draw_forest(judged: Sequence[StageResult]) -> str:
    """The intervals of judged stages against their margins, as SVG."""
    rows = sum(len(_metrics(result)) + 1 for result in judged)
    return draw_svg("forest", 0.9 + 0.27 * rows, lambda figure: _forest(figure, judged))


def in_unit(metric: MetricVerdict, value: float) -> str:
    """A difference as a user reads it: points of accuracy, percent of perplexity, nats."""
    match metric.unit:
        case "fraction":
            return f"{100 * value:+.2f} pt"
        case "log ratio":
            return f"{value:+.2%}"
        case _:
            return f"{value:.4f}"


def _waterfall(figure: Figure, ledger: Ledger | None) -> None:
    """One bar a stage, from the product of all before it to the product with it; both axes are speed-ups."""
    if ledger is None:
        raise ValueError("no ledger to draw")
    panels: tuple[tuple[str, Callable[[LedgerRow], float]], ...] = (
        ("one stream", lambda row: row.decode_log_ratio),
        ("all requests in flight", lambda row: row.throughput_log_ratio),
    )
    rows = (*ledger.rows, ledger.total)
    for axes, (title, ratio) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        start = 0.0
        for index, row in enumerate(rows):
            left, change = (0.0 if row is ledger.total else start), ratio(row)
            colour = BLUE if row is ledger.total else GREEN if change >= 0 else RED
            axes.barh(index, change, left=left, color=colour, height=0.6)
            axes.annotate(
                f"{math.exp(change):.3g}x",
                (max(left, left + change), index),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
            )
            start = left + change
        _speedup_axis(axes)
        axes.set_title(title)
        axes.set_yticks(range(len(rows)), [row.stage for row in rows])
    axes.invert_yaxis()


def _speedup_axis(axes: Axes) -> None:
    """Ticks of a log-ratio axis as factors."""
    low, high = axes.get_xlim()
    high += 0.18 * (high - low)  # room for the last label
    factors = [f for f in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200) if low <= math.log(f) <= high]
    axes.set_xlim(low, high)
    axes.set_xticks([math.log(f) for f in factors], [f"{f:g}x" for f in factors])
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_xlabel("speed against the source")


def _metrics(result: StageResult) -> tuple[MetricVerdict, ...]:
    return result.gate.metrics if result.gate else ()


def _forest(figure: Figure, judged: Sequence[StageResult]) -> None:
    """Every gated metric's interval in units of its margin: left of the line at 1 it passes."""
    axes = figure.subplots()
    labels: list[tuple[int, str]] = []
    position = 0
    for result in judged:
        beside = axes.get_yaxis_transform()
        axes.text(0.0, position, result.stage, transform=beside, weight="bold", va="center")
        for metric in _metrics(result):
            position += 1
            low, centre, high = (
                value / metric.margin for value in (metric.ci_low, metric.loss, metric.ci_high)
            )
            colour = _VERDICT_COLOURS[metric.verdict]
            axes.plot([low, high], [position, position], color=colour, linewidth=2, solid_capstyle="butt")
            axes.plot([centre], [position], "o", color=colour, markersize=5)
            change, least, most = delta(metric)
            text = "{} [{}, {}]".format(*(in_unit(metric, value) for value in (change, least, most)))
            axes.text(1.01, position, text, transform=beside, va="center")
            labels.append((position, f"{metric.task} {metric.metric}"))
        position += 1
    axes.axvline(1, color=RED, linestyle="--", linewidth=1)
    axes.axvline(0, color=INK, linewidth=0.8)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, -0.5), max(high, 1.5))
    axes.set_ylim(position - 0.4, -0.6)
    axes.set_yticks([at for at, _ in labels], [label for _, label in labels])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("loss of quality, in units of the margin (0: as the source, 1: all that is allowed)")


def _latency(figure: Figure, measured: Sequence[StageResult]) -> None:
    """p50, p95 and p99 of both latencies, stage by stage."""
    marks = (("p50", "o", GREEN), ("p95", "s", BLUE), ("p99", "D", ORANGE))
    titles = ("time to first token", "inter-token latency")
    for axes, title in zip(figure.subplots(1, 2, sharey=True), titles, strict=True):
        for index, result in enumerate(measured):
            if result.measurement is None:
                continue
            speed = result.measurement.performance
            each = speed.ttft_ms if title == "time to first token" else speed.itl_ms
            axes.plot([each.p50, each.p99], [index, index], color=GREY, linewidth=1.5, zorder=1)
            for name, marker, colour in marks:
                label = name if axes.get_subplotspec().is_last_col() and not index else None
                axes.plot([getattr(each, name)], [index], marker, color=colour, markersize=6, label=label)
        axes.set_title(title)
        axes.set_xlabel("ms, one stream")
        axes.set_xlim(left=0)
        axes.set_yticks(range(len(measured)), [result.stage for result in measured])
    axes.invert_yaxis()
    axes.margins(y=0.15)
    figure.legend(loc="outside upper right", ncols=3)


def _memory(figure: Figure, measured: Sequence[StageResult]) -> None:
    """Peak memory: what the closed forms said, what was measured, and the relative error."""
    axes = figure.subplots()
    for index, result in enumerate(measured):
        if result.measurement is None:
            continue
        memory = result.measurement.memory
        bars = (("predicted", memory.predicted_mib, GREY, -0.19), ("measured", memory.peak_mib, BLUE, 0.19))
        for name, mib, colour, offset in bars:
            axes.barh(index + offset, mib, height=0.36, color=colour, label=None if index else name)
        error = f", predicted {memory.predicted_mib / memory.peak_mib - 1:+.0%}" if memory.peak_mib else ""
        longest = max(memory.peak_mib, memory.predicted_mib)
        axes.annotate(f"{memory.peak_mib:.0f} MiB{error}", (longest, index), xytext=(4, 0),
                      textcoords="offset points", va="center")  # fmt: skip
    axes.set_yticks(range(len(measured)), [result.stage for result in measured])
    axes.set_xlim(0, 1.3 * axes.get_xlim()[1])
    axes.set_xlabel("peak memory, MiB")
    axes.invert_yaxis()
    figure.legend(loc="outside upper right", ncols=2)
