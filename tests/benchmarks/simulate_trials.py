"""Candidates of known truth, drawn many at a time, and what every gate says of them.

The decisions of Keiryo's gate are taken by the vectorized functions that `judge` itself calls;
`judge_of_counts` takes the same draw through `judge`, for the cross-check.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from configs.quality import Margins
from tasks.quality.confidence_sequence import log_capital
from tasks.quality.gate import judge
from tasks.quality.metric_test import last_critical
from tasks.quality.paired_proportions import score_limits, score_statistic
from tasks.quality.samples import Sample, Samples
from tasks.quality.sequential import LookLevels, LookPlan, conditional_power
from tasks.quality.verdict import GateVerdict

REFERENCE_ACCURACY = 0.65
Counts = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Ended:
    """How each trial ended.

    Attributes:
        passed: PASS, shape (trials,).
        failed: FAIL, shape (trials,).
        items: items a task on average, shape (trials,).
    """

    passed: Bools
    failed: Bools
    items: NDArray[np.float64]


def draw(
    rng: np.random.Generator, items: int, discordance: float, losses: Sequence[float], trials: int
) -> Counts:
    """Counts of (lost, gained, both right, both wrong), shape (trials, tasks, 4), one true loss a task."""
    tables = []
    for loss in losses:
        lost, gained = (discordance + loss) / 2, (discordance - loss) / 2
        right = REFERENCE_ACCURACY - lost
        tables.append(rng.multinomial(items, [lost, gained, right, 1 - lost - gained - right], size=trials))
    return np.stack(tables, axis=1)


def one_look(counts: Counts, margin: float, alpha: float) -> Ended:
    """Keiryo's gate at one look: every task must pass at alpha, any fails at alpha / tasks."""
    items = int(counts[0, 0].sum())
    statistic = score_statistic(counts[..., 0], counts[..., 1], items, margin)
    passed = (statistic < -stats.norm.isf(alpha)).all(-1)
    failed = (statistic > stats.norm.isf(alpha / counts.shape[1])).any(-1)
    return Ended(passed, failed, np.full(counts.shape[0], float(items)))


def several_looks(pieces: Sequence[Counts], plan: LookPlan, margin: float) -> Ended:
    """Keiryo's gate on a plan: each task stops on its own, a FAIL or a PASS out of reach ends all.

    Args:
        pieces: counts of the items that each look adds.
        plan: of every task.
        margin: largest loss allowed.
    """
    trials, tasks, _ = pieces[0].shape
    sums = np.cumsum(np.stack(pieces), axis=0)
    stays, drawing = np.zeros((trials, tasks), dtype=bool), np.ones(trials, dtype=bool)
    failed, used = np.zeros(trials, dtype=bool), np.zeros((trials, tasks))
    for look, items in enumerate(plan.items, start=1):
        judged = drawing[:, None] & ~stays
        used[judged] = items
        at = LookLevels(plan=plan, look=look)
        lost, gained = sums[look - 1, ..., 0], sums[look - 1, ..., 1]
        passes, fails = crossed(lost, gained, items, margin, at, tasks)
        stays |= judged & passes
        failed |= (judged & fails).any(-1)
        hopeless = judged & ~passes
        if not at.is_last:
            hopeless &= futile(lost, gained, margin, at)
        drawing &= ~failed & ~hopeless.any(-1) & ~stays.all(-1)
    return Ended(stays.all(-1) & ~failed, failed, used.mean(-1))


def crossed(
    lost: Counts, gained: Counts, items: int, margin: float, at: LookLevels, tasks: int
) -> tuple[Bools, Bools]:
    """Where counts at a look pass and where they fail, `tasks` being judged in all."""
    to_pass, to_fail = at.levels(tasks)
    if at.plan.kind == "confidence-sequence":
        return (
            log_capital(lost, gained, items, margin) >= -math.log(to_pass),
            log_capital(gained, lost, items, -margin) >= -math.log(to_fail),
        )
    statistic = score_statistic(lost, gained, items, margin)
    return statistic < -stats.norm.isf(to_pass), statistic > stats.norm.isf(to_fail)


def futile(lost: Counts, gained: Counts, margin: float, at: LookLevels) -> Bools:
    """Where a PASS at the last look is too unlikely to draw on for."""
    plan, items = at.plan, at.plan.items[at.look - 1]
    if plan.futility_power is None:
        return np.zeros(lost.shape, dtype=bool)
    low, high = score_limits(lost, gained, items, 1.0)
    critical = last_critical(plan, margin, np.maximum((lost + gained) / items, 0.5 / items))
    fraction = plan.fractions[at.look - 1]
    power = conditional_power((lost - gained) / items, margin, (high - low) / 2, fraction, critical)
    found: Bools = power < plan.futility_power
    return found


def threshold(counts: Counts, margin: float) -> Bools:
    """The naive gate: both accuracies as if they were exact, every task."""
    loss = (counts[..., 0] - counts[..., 1]) / counts.sum(-1)
    accepted: Bools = (loss < margin).all(-1)
    return accepted


def unpaired_z(counts: Counts, alpha: float) -> Bools:
    """lm-eval's model comparator: accepted unless a two-sample z test finds a significant loss in a task."""
    items = counts.sum(-1)
    before = (counts[..., 0] + counts[..., 2]) / items
    after = (counts[..., 1] + counts[..., 2]) / items
    error = np.sqrt((before * (1 - before) + after * (1 - after)) / (items - 1))
    accepted: Bools = ((before - after) / error < stats.norm.isf(alpha / 2)).all(-1)
    return accepted


def unpaired_margin(counts: Counts, margin: float, alpha: float) -> Bools:
    """A non-inferiority test that takes the two models' answers for independent samples."""
    items = counts.sum(-1)
    before = (counts[..., 0] + counts[..., 2]) / items
    after = (counts[..., 1] + counts[..., 2]) / items
    error = np.sqrt((before * (1 - before) + after * (1 - after)) / (items - 1))
    accepted: Bools = (before - after + stats.norm.isf(alpha) * error < margin).all(-1)
    return accepted


def judge_of_counts(
    counts: Counts, margin: float, alpha: float, looks: dict[str, LookLevels] | None = None, tries: int = 1
) -> GateVerdict:
    """One trial's counts, shape (tasks, 4), as per-sample tables through `judge`."""
    before: list[Sample] = []
    after: list[Sample] = []
    for task, row in enumerate(counts):
        values = np.repeat([[1, 0], [0, 1], [1, 1], [0, 0]], row, axis=0)
        for item, pair in enumerate(values):
            for rows, value in zip((before, after), pair, strict=True):
                rows.append(_sample(f"t{task}", str(item), float(value)))
    margins = Margins(perplexity_fraction=None, kl_nats=None, accuracy=margin)
    reference, candidate = (Samples(items_digest="0" * 64, rows=tuple(rows)) for rows in (before, after))
    return judge(reference, candidate, margins, alpha=alpha, tries=tries, looks=looks)


def _sample(task: str, item: str, value: float) -> Sample:
    return Sample(task=task, metric="acc", item=item, item_hash=item, cluster=item, value=value)
