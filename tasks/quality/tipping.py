"""How many answers the batch size could tip, from how far its rounding moves a few of them.

An answer is right while the right choice leads: while its log-likelihood less that of the best wrong one is above 0. Other batches
round otherwise and move every lead a little. Counting the answers that tip over needs many items, because few do (123 without a
change prove 3 points). The movement itself can be seen on a few: an item whose lead is many times as large does not tip. So a share is
bounded by the leads of all judged items and the movements of the probed ones:

    share <= mean over judged items of P(|movement| >= |lead|)

For a movement whose distribution has one mode, at 0, Gauss's inequality bounds each term by its second moment m alone:
4/9 m / lead^2 where lead >= sqrt(4/3 m), and 1 - lead / sqrt(3 m) below. (C. F. Gauss, Theoria combinationis observationum, 1823;
F. Pukelsheim, The American Statistician 48, 1994, 88-91.) The moment's upper limit takes the skewness of squares into account
(`text_limits`). What is assumed: one mode at 0, and movements that do not grow as leads shrink. An engine that feeds every item alike
moves hardly any; where a quarter or less of the probed ones moved, as many are taken to move as Clopper and Pearson allow, by a quarter
of a nat.

Most of that bound comes from near ties, and whether these do tip can be seen: scoring them alone once more counts what changed among
all judged items, but for what tips of the others, for whom the bound stands. So a count of n items costs the near ones only.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tasks.quality.intervals import text_limits
from tasks.quality.noise_floor import NoiseFloor, changed_share
from tasks.quality.pairing import judged_tables, pair
from tasks.quality.sample_set import samples_of
from tasks.quality.samples import Samples
from tasks.store.record import Record

FEWEST_CLUSTERS = 20
"""Of the probed items; a second moment from fewer says too little, and answers are counted instead."""

UNSEEN_MOVEMENT_NATS = 0.25
"""Where few probed leads moved: how far those move that were not drawn. One of 24 items of HellaSwag moved, by 0.06."""


class LeadMovement(Record):
    """How far other batches move the leads of a task.

    Attributes:
        task: name of the task.
        leads: nats by which the right choice leads, of every judged item in the gate's batches.
        probed: the items that were scored again.
        changed: of them, those whose answer changed.
        moment: upper limit of the second moment of a lead's movement, nats^2.
        alpha: one-sided level of that limit.
    """

    task: str
    leads: dict[str, float]
    probed: frozenset[str]
    changed: int
    moment: float
    alpha: float


def lead_movement(known: Samples, again: Samples, *, alpha: float) -> LeadMovement | None:
    """What the probed items' movements say.

    Args:
        known: of every judged item of the task, in the gate's batches, with notes.
        again: of some of them, drawn by chance, in other batches, with notes.
        alpha: one-sided level of the moment's limit.

    Returns:
        None where answers have no lead that says whether they are right (generation, other metrics), or where too few
        clusters were probed.

    Raises:
        SampleError: the two do not match.
    """
    before, after = _leads(known), _leads(again)
    if before is None or after is None:
        return None
    items = {row.item for row in again.rows}
    probed = samples_of(row for row in known.rows if row.item in items)
    ((_, table),) = judged_tables(pair(probed, again, rescored=True))
    moved = np.array([after[item] - before[item] for item in sorted(items)])
    _, codes = np.unique(table.clusters, return_inverse=True)
    sizes = np.bincount(codes).astype(np.float64)
    if sizes.size < FEWEST_CLUSTERS:
        return None
    squares = np.bincount(codes, moved**2).astype(np.float64)
    _, moment = text_limits(squares, sizes, alpha, skewed=True)
    seen = np.count_nonzero(squares)
    if seen <= sizes.size / 4:
        unseen = stats.beta.isf(alpha, seen + 1, sizes.size - seen)
        moment = max(moment, UNSEEN_MOVEMENT_NATS**2 * unseen)
    changed = int((table.reference != table.candidate).sum())
    return LeadMovement(
        task=table.task,
        leads=before,
        probed=frozenset(items),
        changed=changed,
        moment=float(moment),
        alpha=alpha,
    )


def tipping_floor(movement: LeadMovement) -> NoiseFloor:
    """The noise floor of a task from leads alone."""
    share = float(tipping_shares(np.array(list(movement.leads.values())), movement.moment).mean())
    return NoiseFloor(
        task=movement.task,
        metric="accuracy",
        floor=max(share, movement.changed / len(movement.probed)),
        changed=movement.changed,
        items=len(movement.probed),
        alpha=movement.alpha,
        method="leads",
    )


def near_ties(movement: LeadMovement, share: float) -> frozenset[str]:
    """The fewest items, nearest to a tie first, without which at most `share` of all judged items could tip unseen."""
    order = sorted(set(movement.leads) - movement.probed, key=lambda item: abs(movement.leads[item]))
    shares = tipping_shares(np.array([movement.leads[item] for item in order]), movement.moment)
    unseen = np.append(np.cumsum(shares[::-1])[::-1], 0.0) / len(movement.leads)
    return frozenset(order[: int(np.argmax(unseen <= share))])


def near_tie_floor(movement: LeadMovement, known: Samples, again: Samples, *, alpha: float) -> NoiseFloor:
    """The noise floor of a task from the answers that changed among those scored again, and the leads of the others.

    Args:
        movement: of the probed items; its level is spent, too.
        known: of every judged item, in the gate's batches.
        again: of the probed items and of those near a tie, in other batches.
        alpha: one-sided level of the count.

    Raises:
        SampleError: the two do not match.
    """
    seen = {row.item for row in again.rows}
    ((_, both),) = judged_tables(
        pair(samples_of(row for row in known.rows if row.item in seen), again, rescored=True)
    )
    changed = {
        item
        for item, before, after in zip(sorted(seen), both.reference, both.candidate, strict=True)
        if before != after
    }
    ((_, every),) = judged_tables(pair(known, known, rescored=True))
    judged = sorted(movement.leads)
    differs = np.array([item in changed for item in judged])
    unseen = np.array([lead for item, lead in movement.leads.items() if item not in seen])
    left = float(tipping_shares(unseen, movement.moment).sum()) / len(judged)
    return NoiseFloor(
        task=movement.task,
        metric="accuracy",
        floor=min(changed_share(every, differs, alpha) + left, 1.0),
        changed=len(changed),
        items=len(judged),
        alpha=alpha + movement.alpha,
        method="near ties",
    )


def tipping_shares(leads: NDArray[np.float64], moment: float) -> NDArray[np.float64]:
    """Largest chance that each answer tips, shape (n,).

    Args:
        leads: nats, shape (n,).
        moment: second moment of the movement of a lead, nats^2.
    """
    if moment <= 0:
        return np.zeros(len(leads))
    size = np.abs(leads)
    with np.errstate(divide="ignore"):
        far = 4 / 9 * moment / size**2
    near = 1 - size / np.sqrt(3 * moment)
    return np.where(size >= np.sqrt(4 / 3 * moment), far, near)


def _leads(samples: Samples) -> dict[str, float] | None:
    """Lead of the right choice by item; None where one is missing or does not say what was judged."""
    found = {note.item: note.margin_nats for note in samples.notes}
    leads: dict[str, float] = {}
    for kind, table in judged_tables(pair(samples, samples, rescored=True)):
        if kind != "accuracy":
            return None
        items = sorted({row.item for row in samples.rows})
        for item, right in zip(items, table.reference, strict=True):
            lead = found.get(item)
            if lead is None or (lead > 0) != (right == 1):
                return None
            leads[item] = lead
    return leads
