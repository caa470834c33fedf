"""What `make bench PART=speculation` writes: every figure as a row, and a table for people under them."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

from tasks.batching.lossless import Losslessness
from tasks.batching.rounds import Rounds
from tasks.batching.speculation import Speculation
from tests.benchmarks.report_file import row, write


@dataclass(frozen=True)
class Found:
    """One way at one load."""

    way: str
    load: str
    acceptance: dict[str, float]  # by task, "all" among them
    rounds: Rounds
    draft_step_cost: float
    predicted: Speculation
    published: Speculation
    ratios: tuple[float, ...]
    lossless: Losslessness

    @property
    def speedup(self) -> tuple[float, float, float]:
        """Geometric mean of the ratios with its 95 % t interval."""
        logs = [math.log(ratio) for ratio in self.ratios]
        mean, half = statistics.fmean(logs), stats.t.isf(0.025, len(logs) - 1) * stats.sem(logs)
        return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def report(found: Sequence[Found], rates: Mapping[str, list[float]], same: int, requests: int) -> None:
    """Both files: every figure as a row, and a table for people under them."""
    rows = [
        row(way, f"decoding, {load}", "tokens/s", runs)
        for name, runs in rates.items()
        for way, load in [name.split("|")]
    ]
    ratios = {}
    for each in found:
        rows += [row(each.way, f"{work}, {each.load}", unit, [value]) for work, unit, value in figures(each)]
        mean, low, high = each.speedup
        ratios[f"{each.way}_over_plain_decoding_{each.load}"] = {
            "median": mean,
            "ci_low": low,
            "ci_high": high,
        }
    rows.append(row("plain", "identical alone and together", "requests", [float(same)]))
    path = write("speculation", rows, ratios)
    text = path.read_text(encoding="utf-8") + "\n".join(table(found, same, requests))
    path.write_text(text, encoding="utf-8")
    print(text)


def figures(each: Found) -> list[tuple[str, str, float]]:
    """(what, unit, value) of everything beside the speeds."""
    return [
        *((f"acceptance, {task}", "fraction", value) for task, value in each.acceptance.items()),
        ("block", "tokens", float(each.rounds.block)),
        ("tokens a round", "tokens", each.rounds.tokens_per_round),
        ("tokens a round, closed form", "tokens", each.predicted.tokens_per_round),
        ("tokens a round, naive", "tokens", each.predicted.naive_tokens_per_round),
        ("drafted token in a round over a plain step", "ratio", each.predicted.draft_cost),
        ("round of any length over a plain step", "ratio", each.predicted.round_cost),
        ("step of the draft alone over a plain step", "ratio", each.draft_step_cost),
        ("speed-up, closed form with the measured cost", "ratio", each.predicted.speedup),
        ("speed-up, closed form as published", "ratio", each.published.speedup),
        ("speed-up, naive", "ratio", each.published.naive_speedup),
        *((name, "requests", value) for name, value in counts(each.lossless).items()),
        ("tolerance of a tie", "nats", each.lossless.tolerance_nats),
    ]


def counts(found: Losslessness) -> dict[str, float]:
    """Requests by what became of them."""
    return {
        "identical": float(found.identical),
        "tied": float(found.tied),
        "different": float(found.different),
    }


def table(found: Sequence[Found], same_plain: int, requests: int) -> list[str]:
    """The figures that belong side by side."""
    lines = [
        "", "## Side by side", "",
        "Predicted: the closed form with the acceptance and the costs of a drafted token and of a round that the probes measured; "
        "published: the same with checking taken as free; naive: block x acceptance.", "",
        "| way | in flight | acceptance | block | tokens a round (closed form) | speed-up measured | predicted | error | published | "
        "naive | identical / tied / different |", "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for each in found:
        mean, low, high = each.speedup
        same = each.lossless
        lines.append(
            f"| {each.way} | {each.load} | {each.acceptance['all']:.3f} | {each.rounds.block} | {each.rounds.tokens_per_round:.2f} "
            f"({each.predicted.tokens_per_round:.2f}) | {mean:.3f} ({low:.3f} to {high:.3f}) | {each.predicted.speedup:.3f} | "
            f"{each.predicted.speedup / mean - 1:+.0%} | {each.published.speedup:.3f} | {each.published.naive_speedup:.3f} | "
            f"{same.identical} / {same.tied} / {same.different} |"
        )
    lines += [
        "",
        f"Plain decoding says the same alone and {len(found[0].acceptance) - 1} together on {same_plain} of {requests} requests. A "
        "tie is a distance of at most the tolerance at the first difference: "
        + "; ".join(
            f"{each.way}, {each.load}: largest distance {each.lossless.largest_gap_nats:.2g} nats, tolerance "
            f"{each.lossless.tolerance_nats:.2g} (over {each.lossless.positions} tokens)"
            for each in found
        )
        + ".",
        "",
        "Acceptance by task: "
        + "; ".join(
            f"{each.way}: " + ", ".join(f"{task} {value:.2f}" for task, value in each.acceptance.items())
            for each in found
            if each.load.startswith("1 ")
        )
        + ".",
        "",
    ]
    return lines
