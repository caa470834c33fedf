"""lm-eval's logged samples as our per-sample records."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.quality.quality_error import QualityError
from tasks.quality.samples import Sample

# lm-eval's value is a log-likelihood in nats (perplexity), or (log-likelihood, number of units): natural
# units of ours.
LIKELIHOOD_METRICS = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte")


def item_samples(task: str, logged: Sequence[Mapping[str, Any]]) -> list[Sample]:
    """One sample an item and metric.

    A document's `cluster` field becomes the sample's cluster, the item itself without one. Where a task has
    several filters, the metric is named `metric.filter`.

    Raises:
        QualityError: no item, an item twice, a metric that is not one finite number an item.
    """
    filters = {sample["filter"] for sample in logged}
    rows: list[Sample] = []
    for sample in logged:
        item = str(sample["doc_id"])
        for metric in sample["metrics"]:
            value, weight = _ratio(task, item, metric, sample[metric])
            rows.append(
                Sample(
                    task=task,
                    metric=metric if len(filters) == 1 else f"{metric}.{sample['filter']}",
                    item=item,
                    item_hash=sample["doc_hash"],
                    cluster=str(sample["doc"].get("cluster") or item),
                    value=value,
                    weight=weight,
                )
            )
    if not rows:
        raise QualityError(f"task {task} has no scored items")
    twice = [key for key, count in Counter((row.metric, row.item) for row in rows).items() if count > 1]
    if twice:
        raise QualityError(f"task {task}: item {twice[0][1]} stands twice under {twice[0][0]}")
    return rows


def _ratio(task: str, item: str, metric: str, value: Any) -> tuple[float, float]:
    """(value, weight) of a sample."""
    number, weight = value if isinstance(value, tuple | list) and len(value) == 2 else (value, 1.0)
    if isinstance(number, bool | int | float) and isinstance(weight, int | float):
        number, weight = float(number), float(weight)
        if metric in LIKELIHOOD_METRICS:
            number = -number / (math.log(2) if metric == "bits_per_byte" else 1.0)
        elif weight != 1.0:
            raise QualityError(
                f"task {task}: {metric} is no figure of single items; use another metric of the task"
            )
        if math.isfinite(number) and math.isfinite(weight) and weight > 0:
            return number, weight
    raise QualityError(f"task {task}, item {item}: {metric} is {value!r}, not one finite number an item")
