"""Samples of one model as one set: sorted, without doubles, with a digest of what they are samples of."""

import hashlib
import json
from collections.abc import Iterable
from itertools import pairwise

from tasks.quality.pairing import ONE_SAMPLE_METRICS
from tasks.quality.quality_error import QualityError
from tasks.quality.samples import ItemNote, Sample, Samples


def samples_of(rows: Iterable[Sample], notes: Iterable[ItemNote] = ()) -> Samples:
    """Sort rows and digest what they are samples of; notes go along.

    Raises:
        QualityError: there is no row, or one item stands twice.
    """
    ordered = sorted(rows, key=lambda row: (row.task, row.metric, row.item))
    if not ordered:
        raise QualityError("nothing was scored: quality.margins asks for nothing that this split has")
    for before, after in pairwise(ordered):
        if (before.task, before.metric, before.item) == (after.task, after.metric, after.item):
            raise QualityError(f"task {after.task}: item {after.item} stands twice under {after.metric}")
    # KL and flips stand on the items of perplexity and only a candidate has them: both sides have one digest.
    items = [
        [row.task, row.metric, row.item, row.item_hash]
        for row in ordered
        if row.metric not in ONE_SAMPLE_METRICS
    ]
    body = json.dumps(items)
    return Samples(
        items_digest=hashlib.sha256(body.encode()).hexdigest(), rows=tuple(ordered), notes=tuple(notes)
    )


def joined_samples(parts: Iterable[Samples]) -> Samples:
    """Sets of one model as one set.

    Raises:
        QualityError: an item stands in two of them.
    """
    every = list(parts)
    return samples_of(
        (row for part in every for row in part.rows), (note for part in every for note in part.notes)
    )
