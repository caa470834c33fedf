"""The figures of a load: latency by percentile, goodput against load with the SLO line, slots over time; before and after."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tasks.report.svg import BLUE, GREY, INK, RED, draw_svg
from tasks.serving.load_record import CURVE_PERCENTS, LatencySpread, LoadComparison, ServedLoad


def draw_load(comparison: LoadComparison) -> dict[str, str]:
    """Every figure there is data for: file name to SVG."""
    sides = _sides(comparison)
    figures = {
        "load-latency.svg": draw_svg("load-latency", 3.0, lambda figure: _latency(figure, sides)),
        "load-slots.svg": draw_svg("load-slots", 2.8, lambda figure: _slots(figure, sides)),
    }
    if any(served.saturation is not None for _, served, _ in sides):
        figures["load-saturation.svg"] = draw_svg(
            "load-saturation", 3.2, lambda figure: _saturation(figure, sides)
        )
    return figures


_Side = tuple[str, ServedLoad, str]
"""Label, what was served, colour."""


def _sides(comparison: LoadComparison) -> list[_Side]:
    before: _Side = ("before", comparison.before, GREY)
    return [before] if comparison.after is None else [before, ("after", comparison.after, BLUE)]


def _latency(figure: Figure, sides: Sequence[_Side]) -> None:
    """Percentile on the vertical axis: how many requests, and how many gaps between tokens, were at least so quick."""
    slo = sides[0][1].measures.slo
    for axes, (title, limit_ms) in zip(
        figure.subplots(1, 2, sharey=True),
        (("time to first token", slo.ttft_ms), ("inter-token latency", slo.itl_ms)),
        strict=True,
    ):
        for label, served, colour in sides:
            measures = served.measures
            each: LatencySpread = measures.ttft_ms if title == "time to first token" else measures.itl_ms
            axes.plot(each.curve, CURVE_PERCENTS, color=colour, marker=".", label=label)
        axes.axvline(limit_ms, color=RED, linestyle="--", linewidth=1)
        axes.set_title(title)
        axes.set_xlabel("ms")
        axes.set_xlim(left=0)
    figure.axes[0].set_ylabel("percentile")
    _legend(figure, figure.axes[0])


def _saturation(figure: Figure, sides: Sequence[_Side]) -> None:
    """Goodput and attainment over the load; the square is the highest load that meets the SLO."""
    left, right = figure.subplots(1, 2, sharex=True)
    for label, served, colour in sides:
        if (found := served.saturation) is None:
            continue
        scales = [point.scale for point in found.points]
        goodput = [point.goodput_requests_per_s for point in found.points]
        attained = [100 * point.attainment for point in found.points]
        left.plot(scales, goodput, color=colour, marker="o", markersize=4, label=label)
        right.plot(scales, attained, color=colour, marker="o", markersize=4)
        for axes, values in ((left, goodput), (right, attained)):
            met = [(s, v) for s, v in zip(scales, values, strict=True) if s == found.met_scale]
            axes.plot(*zip(*met, strict=True) if met else ((), ()), "s", color=colour, markersize=9)
        right.axhline(100 * found.target, color=RED, linestyle="--", linewidth=1)
    left.set_ylabel("goodput, requests/s")
    right.set_ylabel("requests within the SLO, %")
    right.set_ylim(-3, 103)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("load, times the configured one")
    _legend(figure, left)


def _slots(figure: Figure, sides: Sequence[_Side]) -> None:
    """Occupied slots, and the queue, over time."""
    left, right = figure.subplots(1, 2, sharex=True)
    for label, served, colour in sides:
        points = served.measures.timeline
        at_s = [point.at_s for point in points]
        left.step(at_s, [100 * point.utilization for point in points], where="mid", color=colour, label=label)
        right.step(at_s, [point.waiting for point in points], where="mid", color=colour)
    left.set_ylabel("occupied slots, %")
    left.set_ylim(0, 103)
    right.set_ylabel("requests waiting")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_xlabel("s")
        axes.axhline(0, color=INK, linewidth=0.8)
    _legend(figure, left)


def _legend(figure: Figure, axes: Axes) -> None:
    if len(axes.get_legend_handles_labels()[0]) > 1:
        figure.legend(loc="outside upper right", ncols=2)
