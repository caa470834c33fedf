"""The verdict of the quality gate, as a record."""

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
        alpha: one-sided level of this metric's PASS test, after the correction for tries and looks.
        items: number of items (paired).
        clusters: number of clusters.
        lost: accuracy: items that the reference answers right and the candidate wrong.
        gained: accuracy: the reverse.
        needed: items that would decide, when INCONCLUSIVE; None where no number of them would.
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
    verdict: Literal["PASS", "FAIL", "INCONCLUSIVE"]


class GateVerdict(Record):
    """The gate's answer on one candidate: PASS if every metric passes, FAIL if any fails at alpha / k, else INCONCLUSIVE."""

    verdict: VerdictName
    reason: str
    metrics: tuple[MetricVerdict, ...] = ()
    flip_rate: float | None = None
