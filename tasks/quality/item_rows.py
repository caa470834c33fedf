"""lm-eval's logged samples as our per-sample records."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.quality.quality_error import QualityError
from tasks.quality.samples import Sample
from tasks.quality.score_log import request_key

# lm-eval's value is a log-likelihood in nats (perplexity), or (log-likelihood, number of units): natural
# units of ours.
LIKELIHOOD_METRICS = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte")


@dataclass(frozen=True)
class Asked:
    """What the engine was asked about one item: digests of the requests' tokens, and how many tokens it scored."""

    requests: tuple[str, ...]
    target_tokens: int


def item_samples(task: str, logged: Sequence[Mapping[str, Any]], asked: Mapping[int, Asked]) -> list[Sample]:
    """One sample an item and metric.

    A document's `cluster` field becomes the sample's cluster, the item itself without one. Where a task has
    several filters, the metric is named `metric.filter`. An item's hash covers its content and the tokens it
    was asked with: samples of another tokenizer or another prompt are samples of other items.

    A text that was read whole (loglikelihood_rolling) also gets the metric "perplexity", which the gate
    judges: nats over tokens, the unit that the margin is stated in. lm-eval's own word, byte and bit
    perplexities of the same nats stay beside it, unjudged: 2 % more a byte would be about 8 % more a token.

    Args:
        task: name.
        logged: lm-eval's samples of the task.
        asked: document number to what the engine was asked.

    Raises:
        QualityError: no item, an item twice, a metric that is not one finite number an item.
    """
    filters = {sample["filter"] for sample in logged}
    rows: list[Sample] = []
    for sample in logged:
        number, item = sample["doc_id"], str(sample["doc_id"])
        values = {metric: _ratio(task, item, metric, sample[metric]) for metric in sample["metrics"]}
        if is_whole_text(sample) and "perplexity" not in values:
            nats = -float(sample["resps"][0][0])
            values["perplexity"] = _finite(task, item, "perplexity", nats, float(asked[number].target_tokens))
        for metric, (value, weight) in values.items():
            rows.append(
                Sample(
                    task=task,
                    metric=metric if len(filters) == 1 else f"{metric}.{sample['filter']}",
                    item=item,
                    item_hash=item_hash(sample, asked[number]),
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


def item_hash(sample: Mapping[str, Any], asked: Asked) -> str:
    """Digest of an item's content and of the tokens that the engine was asked with."""
    return request_key("item", sample["doc_hash"], *asked.requests)


def is_whole_text(sample: Mapping[str, Any]) -> bool:
    """Whether the model read a whole text and answered nothing: lm-eval's loglikelihood_rolling."""
    return len(sample["arguments"]) == 1 and len(sample["arguments"][0]) == 1


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
        return _finite(task, item, metric, number, weight)
    raise QualityError(f"task {task}, item {item}: {metric} is {value!r}, not one finite number an item")


def _finite(task: str, item: str, metric: str, value: float, weight: float) -> tuple[float, float]:
    if math.isfinite(value) and math.isfinite(weight) and weight > 0:
        return value, weight
    raise QualityError(
        f"task {task}, item {item}: {metric} is {value} over {weight}, not one finite number an item"
    )
