"""The quality gate: a pure function from two sets of samples to PASS, FAIL, INCONCLUSIVE or ERROR.

A metric passes when the upper limit of its loss lies below the margin at one-sided alpha / tries. All must
pass for a PASS: an intersection-union test (Berger 1982), whose size is alpha without any correction for the
number of metrics. One that lies above its margin makes a FAIL, and "any of k" would happen by chance k
times as often, so that side goes by Holm (1979): the first metric fails at alpha / (tries x k), the second at
alpha / (tries x (k - 1)), and so on. Anything else is INCONCLUSIVE. Samples that do not match are an ERROR, never a
smaller sample; so is a margin in the config for which no metric was scored.

A task whose items are drawn in several looks spends both levels over its looks (`sequential.py`). Each task
stops on its own: one that has passed at a look stays passed, because a PASS of all needs each of them to
have passed at its own level, whenever that was. Perplexity and KL have one look at the full level.

Judged: perplexity (difference of NLL a token against log(1 + fraction)), KL (its upper limit; the candidate
alone has it), and for each task the first of acc, acc_norm, exact_match (the first filter by name). The
others, and flips of tokens, stay in the samples and are reported from there.
"""

import math
from collections.abc import Collection, Mapping

import numpy as np

from configs.quality import Margins
from tasks.quality.intervals import TooFewClusters, text_interval
from tasks.quality.metric_test import Outcome, judge_metric
from tasks.quality.pairing import PairedMetric, SampleError, judged_tables, pair
from tasks.quality.samples import Samples
from tasks.quality.sequential import LookLevels
from tasks.quality.verdict import GateVerdict, reason_of
from tasks.store.record import Record

TEXT = "text"
"""Name under which perplexity and KL are expected."""

Judged = list[tuple[PairedMetric, float]]


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
    reference: Samples,
    candidate: Samples,
    margins: Margins,
    *,
    alpha: float,
    tries: int = 1,
    looks: Mapping[str, LookLevels] | None = None,
    expected: Collection[str] | None = None,
) -> GateVerdict:
    """Judge a candidate against the source model on the same items.

    Args:
        reference: samples of the source model.
        candidate: samples of the candidate, on the same items.
        margins: largest losses allowed; None is not judged.
        alpha: one-sided chance of passing a candidate that is worse than a margin, over all tries and looks.
        tries: candidates that may be judged on these items.
        looks: task to the look that its samples are at; a task that is not named has one look at the full level.
        expected: every task that a PASS needs, "text" for perplexity and KL; one not scored yet leaves the
            verdict at best INCONCLUSIVE. None: what was scored is all there is.

    Raises:
        ValueError: alpha or tries is out of its range, or a plan spends another level than alpha / tries.
    """
    if not 0 < alpha < 0.5 or tries < 1:
        raise ValueError(f"alpha={alpha}, tries={tries}: alpha in (0, 0.5), tries at least 1")
    plans = dict(looks or {})
    level = alpha / tries
    for task, at in plans.items():
        if not math.isclose(at.plan.alpha, level, rel_tol=1e-9):
            raise ValueError(
                f"looks of {task}: the plan spends {at.plan.alpha:g}, the gate alpha / tries = {level:g}"
            )
    try:
        pairs = pair(reference, candidate)
        judged, unscored = _judged(pairs, margins, expected)
        metrics = max(len(judged), _expected_metrics(margins, expected))
        outcomes = _tested(judged, level, metrics, plans)
        flip_rate = _flip_rate(pairs)
    except SampleError as error:
        return GateVerdict(verdict="ERROR", reason=f"cannot judge: {error}")
    return _combined(outcomes, unscored, plans, level).model_copy(update={"flip_rate": flip_rate})


def _tested(judged: Judged, level: float, metrics: int, plans: Mapping[str, LookLevels]) -> list[Outcome]:
    """Every metric's outcome; each that fails leaves a larger share of alpha to the others (Holm's steps)."""
    failed = 0
    while True:
        outcomes = [
            judge_metric(table, margin, level, max(metrics - failed, 1), plans.get(table.task))
            for table, margin in judged
        ]
        found = sum(outcome.row is not None and outcome.row.verdict == "FAIL" for outcome in outcomes)
        if found == failed:
            return outcomes
        failed = found


def _combined(
    outcomes: list[Outcome], unscored: tuple[str, ...], plans: Mapping[str, LookLevels], level: float
) -> GateVerdict:
    """All metrics' outcomes as one verdict."""
    rows = tuple(outcome.row for outcome in outcomes if outcome.row is not None)
    names = {"INCONCLUSIVE" if outcome.row is None else outcome.row.verdict for outcome in outcomes}
    reason = reason_of(rows, 100 * (1 - level), unscored)
    if "FAIL" in names:
        return GateVerdict(verdict="FAIL", reason=reason, metrics=rows)
    if names == {"PASS"} and not unscored:
        return GateVerdict(verdict="PASS", reason=reason, metrics=rows)
    drawing = [outcome.task for outcome in outcomes if outcome.draws_on]
    out_of_reach = any(outcome.is_final_doubt for outcome in outcomes)
    # Without futility stopping, drawing goes on for the sake of a FAIL.
    if out_of_reach and any(at.plan.futility_power is not None for at in plans.values()):
        ended = f"{reason}; a PASS is out of reach, drawing ends" if drawing or unscored else reason
        return GateVerdict(verdict="INCONCLUSIVE", reason=ended, metrics=rows)
    undecided = tuple(dict.fromkeys([*drawing, *unscored]))
    return GateVerdict(
        verdict="INCONCLUSIVE", reason=reason, metrics=rows, undecided=undecided, settled=not undecided
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


def _judged(
    pairs: tuple[PairedMetric, ...], margins: Margins, expected: Collection[str] | None
) -> tuple[Judged, tuple[str, ...]]:
    """The metrics that a margin applies to, and the expected names that have none yet.

    Raises:
        SampleError: a margin without a metric, a task without one that can be judged, or nothing to judge.
    """
    limits = _limits(margins)
    if all(limit is None for limit in limits.values()):
        raise SampleError("no margin is set, so nothing would be judged; set one in quality.margins")
    tables = list(judged_tables(pairs))
    judged = [(table, limit) for kind, table in tables if (limit := limits[kind]) is not None]
    kinds = {kind for kind, _ in tables}
    wanted = set(expected or ())
    tasks = wanted - {TEXT}
    unscored = sorted(tasks - {table.task for _, table in tables}) if limits["accuracy"] is not None else []
    has_text = any(kind != "accuracy" and table.task not in tasks for kind, table in tables)
    if TEXT in wanted and not has_text and (limits["perplexity"] or limits["kl"]):
        unscored.insert(0, TEXT)
    for kind, limit in limits.items():
        later = TEXT in unscored if kind != "accuracy" else bool(set(unscored) - {TEXT})
        if limit is not None and kind not in kinds and not later:
            raise SampleError(
                f"there is a margin for {kind} but no samples of it; score it, or set the margin to null"
            )
    return judged, tuple(unscored)


def _limits(margins: Margins) -> dict[str, float | None]:
    growth = margins.perplexity_fraction
    perplexity = None if growth is None else math.log1p(growth)
    return {"perplexity": perplexity, "kl": margins.kl_nats, "accuracy": margins.accuracy}


def _expected_metrics(margins: Margins, expected: Collection[str] | None) -> int:
    """Metrics that will be judged in the end: the k of the FAIL side, known before everything is scored."""
    if expected is None:
        return 0
    limits = _limits(margins)
    of_text = sum(limits[kind] is not None for kind in ("perplexity", "kl")) if TEXT in expected else 0
    return of_text + (len(set(expected) - {TEXT}) if limits["accuracy"] is not None else 0)


def _flip_rate(pairs: tuple[PairedMetric, ...]) -> float | None:
    """Share of items whose answer turned right or wrong, over the judged accuracy metric of every task."""
    tables = [table for kind, table in judged_tables(pairs) if kind == "accuracy"]
    if not tables:
        return None
    changed = sum(int((table.reference != table.candidate).sum()) for table in tables)
    return changed / sum(table.candidate.size for table in tables)
