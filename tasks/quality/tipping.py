"""How many answers the batch size could tip, from how far its rounding moves a few of them.

An answer is right while the right choice leads: while its log-likelihood less that of the best wrong one is above 0. Other batches
round otherwise and move every lead a little. Counting the answers that tip over needs many items, because few do (123 without a
change prove 3 points). The movement itself can be seen on a few: an item whose lead is many times as large does not tip. So a share is
bounded by the leads of all judged items and the movements of the probed ones:

    share <= mean over judged items of P(|movement| >= |lead|)

For a movement whose distribution has one mode, at 0, Gauss's inequality bounds each term by its second moment m alone:
4/9 m / lead^2 where lead >= sqrt(4/3 m), and 1 - lead / sqrt(3 m) below. (C. F. Gauss, Theoria combinationis observationum, 1823;
F. Pukelsheim, The American Statistician 48, 1994, 88-91.) The moment's upper limit takes the skewness of squares into account
(`text_limits`). What is assumed: one mode at 0, and movements that do not grow as leads shrink.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tasks.quality.intervals import text_limits
from tasks.quality.noise_floor import NoiseFloor
from tasks.quality.pairing import judged_tables, pair
from tasks.quality.sample_set import samples_of
from tasks.quality.samples import Samples

FEWEST_CLUSTERS = 20
"""Of the probed items; a second moment from fewer says too little, and answers are counted instead."""


def tipping_floor(known: Samples, again: Samples, *, alpha: float) -> NoiseFloor | None:
    """The noise floor of one task from leads.

    Args:
        known: of every judged item of the task, in the gate's batches, with notes.
        again: of some of them in other batches, with notes.
        alpha: one-sided level of the limit.

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
    ((kind, table),) = judged_tables(pair(probed, again, rescored=True))
    order = sorted(items)
    moved = np.array([after[item] - before[item] for item in order])
    _, codes = np.unique(table.clusters, return_inverse=True)
    sizes = np.bincount(codes).astype(np.float64)
    if sizes.size < FEWEST_CLUSTERS:
        return None
    squares = np.bincount(codes, moved**2).astype(np.float64)
    _, moment = text_limits(squares, sizes, alpha, skewed=True)
    changed = int((table.reference != table.candidate).sum())
    share = tipping_share(np.array(list(before.values())), float(moment))
    floor = max(share, changed / len(order))
    return NoiseFloor(
        task=table.task,
        metric=kind,
        floor=floor,
        changed=changed,
        items=len(order),
        alpha=alpha,
        method="leads",
    )


def tipping_share(leads: NDArray[np.float64], moment: float) -> float:
    """Largest expected share of answers that tip.

    Args:
        leads: of all judged items, nats, shape (n,).
        moment: second moment of the movement of a lead, nats^2.
    """
    if moment <= 0:
        return 0.0
    size = np.abs(leads)
    with np.errstate(divide="ignore"):
        far = 4 / 9 * moment / size**2
    near = 1 - size / np.sqrt(3 * moment)
    return float(np.where(size >= np.sqrt(4 / 3 * moment), far, near).mean())


def _leads(samples: Samples) -> Mapping[str, float] | None:
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
