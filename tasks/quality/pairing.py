"""Joins the samples of two models into arrays, or says exactly what does not match."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.quality.samples import Sample, Samples

ACCURACY_METRICS = ("acc", "acc_norm", "exact_match")
"""Metrics of 0 and 1, a filter of lm-eval after a dot; the gate judges the first of them that a task has."""

ONE_SAMPLE_METRICS = ("kl", "flips")
"""Metrics that already compare the candidate with the reference: only the candidate has them.

The reference may leave them out, or give rows of value 0. Where it leaves them out, the items of its
perplexity in the same task are the set that the candidate's rows must cover.
"""

NEGATIVE_KL_NATS = -1e-3
"""Rounding makes a KL of nearly 0 slightly negative; below this a token it is not rounding."""

_Items = dict[str, Sample]


class SampleError(ValueError):
    """Two sets of samples cannot be compared: the verdict is ERROR."""


@dataclass(frozen=True)
class PairedMetric:
    """One metric of one task on the same items in the same order.

    Attributes:
        task: name of the task or text.
        metric: name of the metric.
        reference: numerators of the reference, shape (n,); zeros for a one-sample metric.
        candidate: numerators of the candidate, shape (n,).
        weights: denominators, shape (n,).
        clusters: label of each item's cluster, shape (n,).
    """

    task: str
    metric: str
    reference: NDArray[np.float64]
    candidate: NDArray[np.float64]
    weights: NDArray[np.float64]
    clusters: NDArray[np.str_]


def is_accuracy(metric: str) -> bool:
    """Whether values of `metric` are 0 or 1: "acc", "exact_match.strict-match"."""
    return metric.partition(".")[0] in ACCURACY_METRICS


def pair(reference: Samples, candidate: Samples, *, rescored: bool = False) -> tuple[PairedMetric, ...]:
    """Join on (task, metric, item, item_hash); the order of rows does not matter.

    Args:
        reference: samples of the source model.
        candidate: samples of the candidate on the same items.
        rescored: both are samples of one candidate, which both compare with the reference: a divergence is
            then a figure of each, not of the second alone.

    Raises:
        SampleError: no rows, a duplicate item, an impossible value, or another set, hash, weight or cluster.
    """
    before, after = _indexed(reference, "reference"), _indexed(candidate, "candidate")
    pairs = []
    for task, metric in sorted(before.keys() | after.keys()):
        expected, found = before.get((task, metric)), after.get((task, metric))
        if expected is None and metric in ONE_SAMPLE_METRICS:
            expected = before.get((task, "perplexity"))
        if expected is None:
            raise SampleError(
                f"{metric} of {task}: the reference has no such samples; score both on the same metrics"
            )
        if found is None:
            raise SampleError(
                f"{metric} of {task}: the candidate has no such samples; score both on the same metrics"
            )
        pairs.append(_paired(task, metric, expected, found, metric in ONE_SAMPLE_METRICS and not rescored))
    return tuple(pairs)


def _indexed(samples: Samples, who: str) -> Mapping[tuple[str, str], _Items]:
    tables: dict[tuple[str, str], _Items] = {}
    for row in samples.rows:
        where = f"{row.metric} of {row.task}, item {row.item!r} of the {who}"
        _check_numbers(row, where)
        items = tables.setdefault((row.task, row.metric), {})
        if row.item in items:
            raise SampleError(f"{where} occurs twice; every item must be scored once")
        items[row.item] = row
    if not tables:
        raise SampleError(f"the {who} has no samples; score it first")
    return tables


def _check_numbers(row: Sample, where: str) -> None:
    if not math.isfinite(row.value):
        raise SampleError(f"{where}: value {row.value} is not finite; the model or the scoring is broken")
    if not (math.isfinite(row.weight) and row.weight > 0):
        raise SampleError(f"{where}: weight {row.weight} must be finite and above 0")
    if is_accuracy(row.metric) and (row.value not in (0, 1) or row.weight != 1):
        raise SampleError(
            f"{where}: value {row.value}, weight {row.weight}; accuracy is 0 or 1 with weight 1"
        )
    if row.metric == "perplexity" and row.value < 0:
        raise SampleError(f"{where}: negative log-likelihood {row.value} is below 0; the scoring is broken")
    if row.metric == "kl" and row.value < NEGATIVE_KL_NATS * row.weight:
        raise SampleError(f"{where}: KL {row.value} nats is below 0; the scoring is broken")


def judged_tables(pairs: tuple[PairedMetric, ...]) -> Iterator[tuple[str, PairedMetric]]:
    """What the gate looks at, as "perplexity", "kl" or "accuracy" and its table, in the order of the tasks.

    Raises:
        SampleError: a task has none of them.
    """
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


def _paired(task: str, metric: str, expected: _Items, found: _Items, one_sample: bool) -> PairedMetric:
    where = f"{metric} of {task}"
    for items, others, who in ((expected, found, "candidate"), (found, expected, "reference")):
        if missing := sorted(items.keys() - others.keys()):
            raise SampleError(
                f"{where}: the {who} lacks {len(missing)} of {len(items)} items, first {missing[0]!r}; "
                "score both on the same items"
            )
    order = sorted(expected)
    for item in order:
        old, new = expected[item], found[item]
        if old.item_hash != new.item_hash:
            raise SampleError(
                f"{where}, item {item!r}: its content changed (other hash); score both on the same items"
            )
        if old.cluster != new.cluster:
            raise SampleError(f"{where}, item {item!r}: cluster {old.cluster!r} became {new.cluster!r}")
        if old.weight != new.weight and not one_sample:
            raise SampleError(
                f"{where}, item {item!r}: weight {old.weight:g} became {new.weight:g}; "
                "both models must count the same tokens"
            )
        if one_sample and old.metric == metric and old.value != 0:
            raise SampleError(
                f"{where}, item {item!r}: {old.value} of the reference against itself must be 0"
            )
    zeros = np.zeros(len(order))
    return PairedMetric(
        task=task,
        metric=metric,
        reference=zeros if one_sample else np.array([expected[item].value for item in order]),
        candidate=np.array([found[item].value for item in order]),
        weights=np.array([found[item].weight for item in order]),
        clusters=np.array([found[item].cluster for item in order]),
    )
