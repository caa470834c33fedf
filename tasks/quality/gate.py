"""The quality gate: a pure function from two sets of samples to PASS, FAIL, INCONCLUSIVE or ERROR.

A metric passes when the upper limit of its loss lies below the margin at one-sided alpha / (tries x looks).
All must pass for a PASS: an intersection-union test, whose size is alpha without any correction for the
number of metrics. One that lies above its margin makes a FAIL, and "any of k" would happen by chance k
times as often, so that side is tested at alpha / (tries x looks x k). Anything else is INCONCLUSIVE.
Samples that do not match are an ERROR, never a smaller sample; so is a margin in the config for which no
metric was scored.

Judged: perplexity (difference of NLL a token against log(1 + fraction)), KL (its upper limit; the candidate
alone has it), and for each task the first of acc, acc_norm, exact_match (the first filter by name). The
others, and flips of tokens, stay in the samples and are reported from there.
"""

import math
from collections.abc import Iterator
from statistics import NormalDist

import numpy as np

from configs.quality import Margins
from tasks.quality.intervals import Interval, TooFewClusters, accuracy_interval, text_interval
from tasks.quality.pairing import (
    ACCURACY_METRICS,
    ONE_SAMPLE_METRICS,
    PairedMetric,
    SampleError,
    is_accuracy,
    pair,
)
from tasks.quality.samples import Samples
from tasks.quality.verdict import GateVerdict, MetricVerdict
from tasks.store.record import Record

DECIDING_POWER = 0.8
"""Chance of a decision that `needed` promises, should the observed loss be the true one."""

MOST_ITEMS = 10_000_000
"""Above this many needed items, "no number would decide" is the honest answer."""


class Improvement(Record):
    """Whether training lowered the held-out loss.

    Attributes:
        loss_change_nats: NLL a token after minus before; negative is better.
        ci_low: lower end of the two-sided 1 - 2 alpha interval, nats a token.
        ci_high: upper end.
        clusters: independent sections.
        improved: the interval lies below zero.
    """

    loss_change_nats: float
    ci_low: float
    ci_high: float
    clusters: int
    improved: bool


def judge(
    reference: Samples, candidate: Samples, margins: Margins, *, alpha: float, tries: int = 1, looks: int = 1
) -> GateVerdict:
    """Judge a candidate against the source model on the same items.

    Args:
        reference: samples of the source model.
        candidate: samples of the candidate, on the same items.
        margins: largest losses allowed; None is not judged.
        alpha: one-sided chance of passing a candidate that is worse than a margin, over all tries and looks.
        tries: candidates that may be judged on these items.
        looks: times that this candidate may be judged on growing item sets.

    Raises:
        ValueError: alpha, tries or looks is out of its range.
    """
    if not 0 < alpha < 0.5 or tries < 1 or looks < 1:
        raise ValueError(
            f"alpha={alpha}, tries={tries}, looks={looks}: alpha in (0, 0.5), the others at least 1"
        )
    level = alpha / (tries * looks)
    try:
        pairs = pair(reference, candidate)
        judged = _judged(pairs, margins)
        rows = tuple(metric_verdict(table, margin, level, level / len(judged)) for table, margin in judged)
    except SampleError as error:
        return GateVerdict(verdict="ERROR", reason=f"cannot judge: {error}")
    names = {row.verdict for row in rows}
    verdict = "FAIL" if "FAIL" in names else "INCONCLUSIVE" if "INCONCLUSIVE" in names else "PASS"
    return GateVerdict(verdict=verdict, reason=_reason(rows), metrics=rows, flip_rate=_flip_rate(pairs))


def metric_verdict(table: PairedMetric, margin: float, alpha_pass: float, alpha_fail: float) -> MetricVerdict:
    """Judge one metric: PASS at `alpha_pass`, FAIL at `alpha_fail`, which is not larger; both one-sided.

    Raises:
        SampleError: too few independent clusters.
    """
    try:
        shown = _interval(table, alpha_pass)
    except TooFewClusters as error:
        raise SampleError(f"{table.metric} of {table.task}: {error}") from error
    passed = shown.high < margin
    failed = shown.low > margin and _interval(table, alpha_fail).low > margin
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
        verdict="PASS" if passed else "FAIL" if failed else "INCONCLUSIVE",
    )


def improvement(
    before: Samples, after: Samples, *, metric: str = "perplexity", alpha: float = 0.025
) -> Improvement:
    """Whether the NLL a token fell, over all texts that have `metric`.

    `alpha` is one-sided: 0.025 makes the interval a 95 % one.

    Raises:
        SampleError: the two do not match, neither has the metric, or there are too few clusters.
    """
    tables = [table for table in pair(before, after) if table.metric == metric]
    if not tables:
        raise SampleError(f"no samples of {metric}; score the held-out text before and after")
    change = np.concatenate([table.candidate - table.reference for table in tables])
    clusters = [f"{table.task}\0{cluster}" for table in tables for cluster in table.clusters]
    try:
        interval = text_interval(
            change, np.concatenate([table.weights for table in tables]), clusters, alpha=alpha
        )
    except TooFewClusters as error:
        raise SampleError(f"{metric}: {error}") from error
    return Improvement(
        loss_change_nats=interval.estimate,
        ci_low=interval.low,
        ci_high=interval.high,
        clusters=interval.clusters,
        improved=interval.high < 0,
    )


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


def _judged(pairs: tuple[PairedMetric, ...], margins: Margins) -> list[tuple[PairedMetric, float]]:
    """The metrics that a margin applies to.

    Raises:
        SampleError: a margin without a metric, a task without one that can be judged, or nothing to judge.
    """
    growth = margins.perplexity_fraction
    limits = {"perplexity": None if growth is None else math.log1p(growth), "kl": margins.kl_nats}
    limits["accuracy"] = margins.accuracy
    found = [(kind, table) for kind, table in _kinds(pairs) if limits[kind] is not None]
    for kind, limit in limits.items():
        if limit is not None and all(kind != other for other, _ in found):
            raise SampleError(
                f"there is a margin for {kind} but no samples of it; score it, or set the margin to null"
            )
    if not found:
        raise SampleError("no margin is set, so nothing would be judged; set one in quality.margins")
    return [(table, limit) for kind, table in found if (limit := limits[kind]) is not None]


def _kinds(pairs: tuple[PairedMetric, ...]) -> Iterator[tuple[str, PairedMetric]]:
    tables = {(table.task, table.metric): table for table in pairs}
    for task in sorted({table.task for table in pairs}):
        kinds = [
            (metric, tables[task, metric]) for metric in ("perplexity", "kl") if (task, metric) in tables
        ]
        accuracy = [table for table in pairs if table.task == task and is_accuracy(table.metric)]
        accuracy.sort(key=lambda table: ACCURACY_METRICS.index(table.metric.partition(".")[0]))
        kinds += [("accuracy", table) for table in accuracy[:1]]
        if not kinds:
            names = sorted({table.metric for table in pairs if table.task == task})
            raise SampleError(
                f"task {task} has only {', '.join(names)}; the gate judges {', '.join(ACCURACY_METRICS)}, "
                "perplexity and kl: take the task out of quality.tasks.names"
            )
        yield from kinds


def _interval(table: PairedMetric, alpha: float) -> Interval:
    if is_accuracy(table.metric):
        return accuracy_interval(table.reference - table.candidate, table.clusters, alpha=alpha)
    change = table.candidate - table.reference
    return text_interval(change, table.weights, table.clusters, alpha=alpha, skewed=table.metric == "kl")


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


def _reason(rows: tuple[MetricVerdict, ...]) -> str:
    """One line; the metric that decided comes first."""
    confidence = f"at {100 * (1 - rows[0].alpha):.4g} % confidence"
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
        return f"{len(open_rows)} of {len(rows)} metrics undecided {confidence}: {describe(hardest)}; {more}"
    closest = max(rows, key=lambda row: row.ci_high / row.margin)
    return f"all {len(rows)} metrics within their margins {confidence}; closest: {describe(closest)}"


def _flip_rate(pairs: tuple[PairedMetric, ...]) -> float | None:
    """Share of items whose answer turned right or wrong, over the judged accuracy metric of every task."""
    tables = [table for kind, table in _kinds(pairs) if kind == "accuracy"]
    if not tables:
        return None
    changed = sum(int((table.reference != table.candidate).sum()) for table in tables)
    return changed / sum(table.candidate.size for table in tables)
