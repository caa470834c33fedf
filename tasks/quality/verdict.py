"""The verdict of the quality gate, as a record and in words."""

import math
from collections.abc import Sequence
from typing import Literal

from tasks.store.record import Record

VerdictName = Literal["PASS", "FAIL", "INCONCLUSIVE", "ERROR", "SKIPPED"]


class MetricVerdict(Record):
    """One metric against its margin. All figures in the metric's own unit; `loss` > 0 means the candidate is worse.

    Attributes:
        task: name of the task or text.
        metric: "acc", "perplexity", "kl", ...
        unit: "fraction", "log ratio", "nats a token".
        reference: the metric of the reference, as users know it (accuracy, perplexity); None for KL and flips.
        candidate: the metric of the candidate, as users know it.
        loss: how much worse the candidate is (accuracy: reference - candidate; perplexity: log of the ratio; KL: itself).
        ci_low: lower end of the two-sided 1 - 2 alpha interval of the loss.
        ci_high: upper end.
        margin: the largest loss allowed.
        alpha: one-sided level of this metric's PASS test at this look, after the correction for tries and looks.
        items: number of items (paired).
        clusters: number of clusters.
        lost: accuracy: items that the reference answers right and the candidate wrong.
        gained: accuracy: the reverse.
        needed: items that would decide, when INCONCLUSIVE; None where no number of them would.
        look: at which look of its plan the metric was judged, from 1.
        looks: looks of that plan.
        verdict: PASS when ci_high < margin, FAIL when the interval at the corrected level lies above the margin.
    """

    task: str
    metric: str
    unit: str
    reference: float | None
    candidate: float
    loss: float
    ci_low: float
    ci_high: float
    margin: float
    alpha: float
    items: int
    clusters: int
    lost: int | None = None
    gained: int | None = None
    needed: int | None = None
    look: int = 1
    looks: int = 1
    verdict: Literal["PASS", "FAIL", "INCONCLUSIVE"]


class GateVerdict(Record):
    """The gate's answer on one candidate: PASS if every metric passes, FAIL if any fails at alpha / k, else INCONCLUSIVE.

    Attributes:
        verdict: the answer.
        reason: one line; the metric that decided comes first.
        metrics: every metric that was judged.
        flip_rate: share of the tasks' items whose answer turned right or wrong; None without a task.
        undecided: tasks that should draw more items, and those that are expected but not scored yet.
        settled: whether drawing ends here: a PASS, a FAIL, an ERROR, the last look, or a PASS out of reach.
    """

    verdict: VerdictName
    reason: str
    metrics: tuple[MetricVerdict, ...] = ()
    flip_rate: float | None = None
    undecided: tuple[str, ...] = ()
    settled: bool = True


def describe(row: MetricVerdict) -> str:
    """One metric in words, in the units users think in."""
    if row.metric == "kl":
        return (
            f"KL of {row.task} is {row.loss:.4f} nats a token ({row.ci_low:.4f} to {row.ci_high:.4f}, "
            f"margin {row.margin:g})"
        )
    perplexity = row.metric == "perplexity"
    loss, low, high, margin = (
        100 * (math.expm1(min(x, 700.0)) if perplexity else x)
        for x in (row.loss, row.ci_low, row.ci_high, row.margin)
    )
    better, worse, unit = ("fell", "grew", " %") if perplexity else ("rose", "fell", " points")
    return (
        f"{row.metric} of {row.task} {worse if loss > 0 else better} by {abs(loss):.2f}{unit} "
        f"(loss {low:.2f} to {high:.2f}, margin {margin:g})"
    )


def reason_of(rows: Sequence[MetricVerdict], confidence_percent: float, unscored: Sequence[str]) -> str:
    """One line; the metric that decided comes first, then what is not scored yet."""
    confidence = f"at {confidence_percent:.4g} % confidence"
    later = f"; not scored yet: {', '.join(unscored)}" if unscored else ""
    failed = [row for row in rows if row.verdict == "FAIL"]
    if failed:
        worst = max(failed, key=lambda row: row.ci_low / row.margin)
        return f"{len(failed)} of {len(rows)} metrics beyond the margin {confidence}: {describe(worst)}"
    open_rows = [row for row in rows if row.verdict == "INCONCLUSIVE"]
    if open_rows:
        hardest = max(open_rows, key=lambda row: (row.needed or math.inf) / row.items)
        more = (
            "it lies at its margin, more items would not decide"
            if hardest.needed is None
            else f"about {hardest.needed} items would decide, {hardest.items} were judged"
        )
        return f"{len(open_rows)} of {len(rows)} metrics undecided {confidence}: {describe(hardest)}; {more}{later}"
    if not rows:
        return f"nothing can be judged yet{later}"
    closest = max(rows, key=lambda row: row.ci_high / row.margin)
    return f"all {len(rows)} metrics within their margins {confidence}; closest: {describe(closest)}{later}"
