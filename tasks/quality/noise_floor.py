"""The noise floor: how much a metric moves when the same candidate is scored again in batches of another size.

Batches of another shape round differently, and a nearly tied answer tips over. A verdict on a margin that
lies within this noise would be one on the batch size: such a margin is refused.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from configs.quality import Margins
from tasks.quality.intervals import TooFewClusters, design_effect, text_interval
from tasks.quality.pairing import PairedMetric, judged_tables, pair
from tasks.quality.samples import Samples
from tasks.store.record import Record

SETTINGS = {"perplexity": "perplexity_fraction", "kl": "kl_nats", "accuracy": "accuracy"}


class MarginBelowNoise(ValueError):
    """A margin is not larger than what the batch size alone may change."""


class NoiseFloor(Record):
    """What the batch size alone may change in one metric.

    Attributes:
        task: name of the task or text.
        metric: "perplexity", "kl" or "accuracy".
        floor: upper confidence limit, in the margin's unit: share of items whose answer changed (accuracy),
            fraction of the perplexity, nats a token. Without any change 0 for the text metrics; of 600 answers
            that all stay the same, up to 0.5 % may still change (alpha 5 %).
        changed: samples whose value differs at all.
        items: samples.
        alpha: one-sided level of the limit.
        method: "counted": from the samples that changed; "leads": from how far leads moved; "near ties": changes were counted
            among the items whose lead is small, the others' leads bound the rest (both `tasks.quality.tipping`).
    """

    task: str
    metric: str
    floor: float
    changed: int
    items: int
    alpha: float
    method: Literal["counted", "leads", "near ties"] = "counted"


def noise_floor(first: Samples, second: Samples, *, alpha: float = 0.05) -> tuple[NoiseFloor, ...]:
    """Compare two scorings of one candidate on the same items at two batch sizes.

    Accuracy: upper limit of Clopper & Pearson (1934) of the share of changed answers, on counts divided by
    their design effect. Perplexity and KL: the end farther from 0 of the gate's interval of the difference; with
    fewer clusters than it needs, the largest change a token of any one section, which the mean cannot exceed.

    Args:
        first: samples of the candidate.
        second: samples of the candidate at another batch size.
        alpha: one-sided level.

    Raises:
        SampleError: the two do not match.
        ValueError: alpha is out of its range.
    """
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha={alpha}: must lie in (0, 0.5)")
    return tuple(
        _floor(kind, table, alpha) for kind, table in judged_tables(pair(first, second, rescored=True))
    )


def refuse_below_floor(floors: tuple[NoiseFloor, ...], margins: Margins) -> None:
    """Refuse margins that the batch size alone could use up.

    Raises:
        MarginBelowNoise: a margin is not above its metric's floor.
    """
    for found in floors:
        setting = SETTINGS[found.metric]
        margin = getattr(margins, setting)
        if margin is None or margin > found.floor:
            continue
        raise MarginBelowNoise(
            f"quality.margins.{setting} = {margin:g}: must be above the noise floor {found.floor:.3g} of "
            f"{found.task}: scored again at another batch size, {found.changed} of {found.items} samples of "
            f"the same candidate changed; allow more, score more items, or compute in a wider type (engine.compute: f32)"
        )


def changed_share(table: PairedMetric, differs: NDArray[np.bool_], alpha: float) -> float:
    """Upper limit of the share of changed answers (Clopper & Pearson 1934), counts divided by their design effect.

    Args:
        table: the items, with their clusters.
        differs: which of them changed, shape (items,).
        alpha: one-sided level.
    """
    _, codes = np.unique(table.clusters, return_inverse=True)
    changed = np.bincount(codes, differs).astype(np.float64)
    sizes = np.bincount(codes).astype(np.float64)
    effect = (
        float(design_effect(changed, np.zeros_like(changed), sizes)) if sizes.size < differs.size else 1.0
    )
    count, items = changed.sum() / effect, differs.size / effect
    return float(stats.beta.isf(alpha, count + 1, items - count)) if items > count else 1.0


def _floor(kind: str, table: PairedMetric, alpha: float) -> NoiseFloor:
    differs = table.reference != table.candidate
    floor = 0.0
    if kind == "accuracy":
        floor = changed_share(table, differs, alpha)
    elif differs.any():
        floor = _change(table, alpha)
        floor = float(np.expm1(floor)) if kind == "perplexity" else floor
    return NoiseFloor(
        task=table.task, metric=kind, floor=floor, changed=int(differs.sum()), items=differs.size, alpha=alpha
    )


def _change(table: PairedMetric, alpha: float) -> float:
    change = table.candidate - table.reference
    try:
        found = text_interval(change, table.weights, table.clusters, alpha=alpha)
    except TooFewClusters:
        return float(np.abs(change / table.weights).max())
    return max(abs(found.low), abs(found.high))
