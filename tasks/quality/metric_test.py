"""One metric against its margin: its interval at the level of its look, and whether its task draws on."""

import math
from dataclasses import dataclass
from statistics import NormalDist

from numpy.typing import ArrayLike

from tasks.quality.confidence_sequence import critical_statistics, sequence_limits
from tasks.quality.intervals import Interval, TooFewClusters, accuracy_interval, interval_of, text_interval
from tasks.quality.pairing import ONE_SAMPLE_METRICS, PairedMetric, SampleError, is_accuracy
from tasks.quality.sequential import LookLevels, LookPlan, conditional_power
from tasks.quality.verdict import MetricVerdict

DECIDING_POWER = 0.8
"""Chance of a decision that `needed` promises, should the observed loss be the true one."""

MOST_ITEMS = 10_000_000
"""Above this many needed items, "no number would decide" is the honest answer."""

ONE_SIGMA = NormalDist().cdf(-1)
"""Level at which half an interval's width is the standard error."""


@dataclass(frozen=True)
class Outcome:
    """What the gate knows of one metric.

    Attributes:
        task: whose items it was judged on.
        row: the metric against its margin; None where its clusters are still too few for an interval.
        draws_on: more items of the task may decide it.
    """

    task: str
    row: MetricVerdict | None
    draws_on: bool

    @property
    def is_final_doubt(self) -> bool:
        """Undecided, and no more items will be drawn: a PASS of all metrics is out of reach."""
        return self.row is not None and self.row.verdict == "INCONCLUSIVE" and not self.draws_on


def judge_metric(
    table: PairedMetric, margin: float, alpha: float, metrics: int, at: LookLevels | None
) -> Outcome:
    """Judge one metric at its look.

    Args:
        table: the paired samples.
        margin: largest loss allowed.
        alpha: one-sided level of a PASS over all looks; a FAIL spends alpha / `metrics`.
        metrics: metrics that are judged in all.
        at: the look; None where there is only one.

    Raises:
        SampleError: too few independent clusters at the last look, another number of items than the look
            has, or a plan that cannot judge such samples.
    """
    if at is None:
        return Outcome(table.task, metric_verdict(table, margin, alpha, alpha / metrics), draws_on=False)
    _check_look(table, at)
    try:
        row = metric_verdict(table, margin, *at.levels(metrics), at)
    except SampleError:
        if at.is_last:
            raise
        return Outcome(table.task, None, draws_on=True)
    draws_on = row.verdict == "INCONCLUSIVE" and not at.is_last and not _is_futile(table, row, at)
    return Outcome(table.task, row, draws_on)


def metric_verdict(
    table: PairedMetric, margin: float, alpha_pass: float, alpha_fail: float, at: LookLevels | None = None
) -> MetricVerdict:
    """Judge one metric: PASS at `alpha_pass`, FAIL at `alpha_fail`, which is not larger; both one-sided.

    Raises:
        SampleError: too few independent clusters.
    """
    try:
        shown = _interval(table, alpha_pass, at)
    except TooFewClusters as error:
        raise SampleError(f"{table.metric} of {table.task}: {error}") from error
    passed = shown.high < margin
    failed = shown.low > margin and _interval(table, alpha_fail, at).low > margin
    weight = table.weights.sum()
    before, after = float(table.reference.sum() / weight), float(table.candidate.sum() / weight)
    accuracy = is_accuracy(table.metric)
    if table.metric == "perplexity":
        before, after = (
            math.exp(min(nll, 700.0)) for nll in (before, after)
        )  # exp(709) is the largest float
    change = table.reference - table.candidate
    return MetricVerdict(
        task=table.task,
        metric=table.metric,
        unit="fraction" if accuracy else "log ratio" if table.metric == "perplexity" else "nats a token",
        reference=None if table.metric in ONE_SAMPLE_METRICS else before,
        candidate=after,
        loss=shown.estimate,
        ci_low=shown.low,
        ci_high=shown.high,
        margin=margin,
        alpha=alpha_pass,
        items=shown.n,
        clusters=shown.clusters,
        lost=int((change > 0).sum()) if accuracy else None,
        gained=int((change < 0).sum()) if accuracy else None,
        needed=None if passed or failed else _needed(shown, margin, alpha_pass, alpha_fail),
        look=at.look if at else 1,
        looks=len(at.plan.items) if at else 1,
        verdict="PASS" if passed else "FAIL" if failed else "INCONCLUSIVE",
    )


def _check_look(table: PairedMetric, at: LookLevels) -> None:
    where = f"{table.metric} of {table.task}"
    if not 1 <= at.look <= len(at.plan.items):
        raise SampleError(f"{where}: look {at.look} of a plan with {len(at.plan.items)} looks")
    planned, found = at.plan.items[at.look - 1], table.reference.size
    if planned != found:
        raise SampleError(
            f"{where}: {found} items were paired, look {at.look} of its plan has {planned}; score exactly those"
        )
    if at.plan.kind != "confidence-sequence":
        return
    way_out = "set quality.sequential.kind to 'planned', or take the task out of quality.tasks.names"
    if not is_accuracy(table.metric):
        raise SampleError(f"{where}: a confidence sequence judges accuracy only; {way_out}")
    if len(set(table.clusters)) < found:
        raise SampleError(
            f"{where}: its items share clusters, a confidence sequence needs independent ones; {way_out}"
        )


def _is_futile(table: PairedMetric, row: MetricVerdict, at: LookLevels) -> bool:
    """Whether a PASS at the last look is too unlikely to draw on for."""
    plan = at.plan
    if plan.futility_power is None:
        return False
    changed = max(float((table.reference != table.candidate).mean()), 0.5 / row.items)
    sigma = _interval(table, ONE_SIGMA, None)
    power = conditional_power(
        row.loss,
        row.margin,
        (sigma.high - sigma.low) / 2,
        plan.fractions[at.look - 1],
        last_critical(plan, row.margin, changed),
    )
    return bool(power < plan.futility_power)


def last_critical(plan: LookPlan, margin: float, discordance: ArrayLike) -> ArrayLike:
    """Standardized gap to the margin that a PASS needs at the last look, where that share of items changed."""
    if plan.kind == "confidence-sequence":
        return critical_statistics(plan.items[-1], margin, discordance, plan.alpha)
    return NormalDist().inv_cdf(1 - plan.levels[-1])


def _interval(table: PairedMetric, alpha: float, at: LookLevels | None) -> Interval:
    loss = table.reference - table.candidate
    if at is not None and at.plan.kind == "confidence-sequence":
        low, high = sequence_limits((loss > 0).sum(), (loss < 0).sum(), loss.size, alpha)
        return interval_of(
            loss.mean(), low, high, alpha, loss.size, loss.size, "confidence sequence (betting)"
        )
    if is_accuracy(table.metric):
        return accuracy_interval(loss, table.clusters, alpha=alpha)
    return text_interval(-loss, table.weights, table.clusters, alpha=alpha, skewed=table.metric == "kl")


def _needed(interval: Interval, margin: float, alpha_pass: float, alpha_fail: float) -> int | None:
    """Items that decide with 80 % chance if the observed loss and spread are true; None where none would."""
    normal = NormalDist()
    gap = margin - interval.estimate
    width = interval.high - interval.estimate if gap > 0 else interval.estimate - interval.low
    error = width / normal.inv_cdf(1 - alpha_pass)
    quantiles = normal.inv_cdf(1 - (alpha_pass if gap > 0 else alpha_fail)) + normal.inv_cdf(DECIDING_POWER)
    if abs(gap) * math.sqrt(MOST_ITEMS) <= quantiles * error * math.sqrt(interval.n):
        return None
    return math.ceil(interval.n * (quantiles * error / gap) ** 2)
