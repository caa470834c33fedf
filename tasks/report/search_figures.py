"""What a search found: the front of speed against divergence, and what each layer loses at 4 bits."""

from collections.abc import Iterable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tasks.release.stage_result import CandidateResult
from tasks.report.svg import BLUE, GREEN, GREY, INK, ORANGE, RED

Range = tuple[float, float]


def draw_pareto(
    figure: Figure, tried: Iterable[CandidateResult], released: set[str], margin: float | None
) -> None:
    """Speed against divergence on the search items; the marker's area is the size of the weights.

    Bars: least to largest of the repeats, and the 95 % interval of the divergence over sections, where there are any.
    """
    points = [each for each in {each.name: each for each in tried}.values() if each.measurement is not None]
    axes = figure.subplots()
    front = sorted(_position(each) for each in points if not any(_dominates(o, each) for o in points))
    axes.plot([x for x, _ in front], [y for _, y in front], color=GREY, linewidth=1, zorder=1)
    for number, each in enumerate(points, start=1):
        (speed, nats), mib = _position(each), _weights_mib(each)
        colour = GREEN if each.name in released else BLUE
        label = f"{number}  {each.name} ({mib:.0f} MiB)"
        _draw_bars(axes, each, colour)
        axes.scatter([speed], [nats], s=90 + mib, color=colour, zorder=2, label=label)
        axes.annotate(str(number), (speed, nats), color="white", weight="bold", ha="center", va="center")
    if margin is not None:
        axes.axhline(margin, color=RED, linestyle="--", linewidth=1)
        axes.annotate("margin", (1, margin), xycoords=axes.get_yaxis_transform(), xytext=(0, 3),
                      textcoords="offset points", ha="right", color=RED, fontsize=8)  # fmt: skip
    axes.margins(0.1, 0.25)
    figure.legend(loc="outside right upper", fontsize=8, handlelength=1, markerscale=0.5)
    if all(_position(each)[1] > 0 for each in points):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("tokens/s, all requests in flight (further right is better; bars: all repeats)")
    axes.set_ylabel("KL, nats a token (lower is better; bars: 95 %)")


def draw_sensitivity(figure: Figure, searched: Sequence[CandidateResult]) -> None:
    """Predicted divergence of every linear layer at 4 bits, along the depth of the model, one line a kind of layer."""
    panels = figure.subplots(len(searched), 1, squeeze=False)[:, 0]
    colours = (BLUE, ORANGE, GREEN, RED, INK, GREY)
    for axes, result in zip(panels, searched, strict=True):
        for number, (kind, along) in enumerate(sorted(_by_kind(result.sensitivity).items())):
            style = "-" if number < len(colours) else "--"
            axes.plot(list(along), list(along.values()), style, marker="o", markersize=3, linewidth=1,
                      color=colours[number % len(colours)], label=kind if axes is panels[0] else None)  # fmt: skip
        axes.set_yscale("log")
        axes.set_title(result.name)
        axes.set_ylabel("predicted KL, nats")
    panels[-1].set_xlabel("block; rounding the one layer to 4 bits, all others as they are")
    figure.legend(loc="outside right upper", fontsize=8)


def sensitive(tried: Iterable[CandidateResult]) -> list[CandidateResult]:
    """The candidates to draw sensitivities of: one for each set of figures, the first."""
    found: dict[tuple[tuple[str, float], ...], CandidateResult] = {}
    for each in tried:
        if each.sensitivity:
            found.setdefault(tuple(sorted(each.sensitivity.items())), each)
    return list(found.values())


def _by_kind(sensitivity: Mapping[str, float]) -> dict[str, dict[int, float]]:
    """Kind of layer ("up_proj") to block number to nats, blocks rising; layers outside of blocks stand at 0."""
    found: dict[str, dict[int, float]] = {}
    for name, nats in sensitivity.items():
        numbers = [int(part) for part in name.split(".") if part.isdigit()]
        found.setdefault(name.rpartition(".")[2], {})[numbers[0] if numbers else 0] = nats
    return {kind: dict(sorted(along.items())) for kind, along in found.items()}


def _position(result: CandidateResult) -> tuple[float, float]:
    speed = result.measurement.performance.throughput_tokens_per_s if result.measurement else 0.0
    return speed, result.screen["kl_nats"]


def _weights_mib(result: CandidateResult) -> float:
    return result.measurement.memory.weights_mib if result.measurement else 0.0


def _dominates(one: CandidateResult, other: CandidateResult) -> bool:
    (fast, near), (speed, nats) = _position(one), _position(other)
    return fast >= speed and near <= nats and (fast, near) != (speed, nats)


def _draw_bars(axes: Axes, result: CandidateResult, colour: str) -> None:
    speed, nats = _position(result)
    runs = result.measurement.performance.throughput_runs if result.measurement else ()
    if len(runs) > 1:
        axes.plot([min(runs), max(runs)], [nats, nats], color=colour, linewidth=1.5, zorder=1)
    low, high = (result.screen.get(f"kl_nats_ci_{end}") for end in ("low", "high"))
    if low is not None and high is not None:
        axes.plot([speed, speed], [max(low, 0.1 * nats), high], color=colour, linewidth=1.5, zorder=1)
