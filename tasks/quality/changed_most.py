"""The items that changed most between source and candidate: what a person should look at first.

A mean hides flips. First the items whose answer turned right or wrong, those first where the right answer's
lead over the best wrong one moved most; then the sections of text by their divergence from the source and by
how much less, or more, likely they became.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, zip_longest

from tasks.quality.pairing import ACCURACY_METRICS, is_accuracy
from tasks.quality.samples import ItemNote, Sample, Samples
from tasks.store.record import Record

MOST_ROWS = 40
TEXT_SHARE = 0.25  # of the rows, kept for sections of text where there are any
SMALLEST_NATS = 1e-6  # a token; less is rounding


class ChangedItem(Record):
    """One item on which the two models differ.

    Attributes:
        task: name of the task, or of the text.
        metric: what changed: an accuracy metric, "kl" or "perplexity".
        item: number or name of the item in its task.
        change: "became wrong", "became right", "diverged", "less likely" or "more likely".
        change_nats: of an accuracy metric how the lead of the right answer moved, where known; of "kl" the divergence
            and of "perplexity" the change of the negative log-likelihood, both in nats a token.
        prompt: the question, or the beginning of the text; empty where it was not kept.
        target: the right answer; empty for a text.
        source: what the source model gave: its answer, or the text's perplexity.
        candidate: what the candidate gave.
    """

    task: str
    metric: str
    item: str
    change: str
    change_nats: float | None
    prompt: str
    target: str
    source: str
    candidate: str


def changed_most(source: Samples, candidate: Samples, most: int = MOST_ROWS) -> tuple[ChangedItem, ...]:
    """At most `most` rows, flips of answers first. Items that only one side has are left out."""
    before, after = _rows(source), _rows(candidate)
    notes = _notes(source), _notes(candidate)
    flips = sorted(_flips(before, after, notes), key=lambda row: -abs(row.change_nats or 0.0))
    texts = list(_texts(before, after, notes))
    kept = min(len(texts), math.ceil(TEXT_SHARE * most))
    shown = flips[: most - kept]
    return (*shown, *texts[: most - len(shown)])


_Key = tuple[str, str, str]
_Notes = Mapping[tuple[str, str], ItemNote]


def _rows(samples: Samples) -> dict[_Key, Sample]:
    return {(row.task, row.metric, row.item): row for row in samples.rows}


def _notes(samples: Samples) -> _Notes:
    return {(note.task, note.item): note for note in samples.notes}


def _judged_metrics(rows: Iterable[_Key]) -> set[tuple[str, str]]:
    """(task, metric): the accuracy metric of each task that the gate judges."""
    found: dict[str, set[str]] = {}
    for task, metric, _ in rows:
        if is_accuracy(metric):
            found.setdefault(task, set()).add(metric)
    order = ACCURACY_METRICS.index
    return {
        (task, min(names, key=lambda n: (order(n.partition(".")[0]), n))) for task, names in found.items()
    }


def _flips(
    before: Mapping[_Key, Sample], after: Mapping[_Key, Sample], notes: tuple[_Notes, _Notes]
) -> Iterator[ChangedItem]:
    judged = _judged_metrics(before)
    for key, new in after.items():
        task, metric, item = key
        old = before.get(key)
        if (task, metric) not in judged or old is None or old.value == new.value:
            continue
        was, became = (side.get((task, item)) for side in notes)
        leads = [note.margin_nats for note in (was, became) if note and note.margin_nats is not None]
        yield ChangedItem(
            task=task,
            metric=metric,
            item=item,
            change="became wrong" if new.value < old.value else "became right",
            change_nats=leads[1] - leads[0] if len(leads) == 2 else None,
            prompt=was.prompt if was else "",
            target=was.target if was else "",
            source=was.answer if was else _right(old),
            candidate=became.answer if became else _right(new),
        )


def _right(row: Sample) -> str:
    return "right" if row.value else "wrong"


def _texts(
    before: Mapping[_Key, Sample], after: Mapping[_Key, Sample], notes: tuple[_Notes, _Notes]
) -> Iterator[ChangedItem]:
    """The most diverged and the most changed in likelihood in turn, each section once."""
    divergences, changes = [], []
    for (task, metric, item), new in after.items():
        if metric == "kl":
            divergences.append((new.value / new.weight, task, item))
        old = before.get((task, metric, item))
        if metric == "perplexity" and old is not None:
            changes.append((new.value / new.weight - old.value / old.weight, task, item))
    ranked = zip_longest(
        (("kl", *row) for row in sorted(divergences, reverse=True)),
        (("perplexity", *row) for row in sorted(changes, key=lambda row: -abs(row[0]))),
    )
    seen = set()
    for row in chain.from_iterable(ranked):
        if row is None or abs(row[1]) < SMALLEST_NATS or row[2:] in seen:
            continue
        metric, nats, task, item = row
        seen.add((task, item))
        likely = "less likely" if nats > 0 else "more likely"
        note = notes[0].get((task, item)) or notes[1].get((task, item))
        yield ChangedItem(
            task=task,
            metric=metric,
            item=item,
            change="diverged" if metric == "kl" else likely,
            change_nats=nats,
            prompt=note.prompt if note else "",
            target="",
            source=_perplexity(before.get((task, "perplexity", item))),
            candidate=_perplexity(after.get((task, "perplexity", item))),
        )


def _perplexity(row: Sample | None) -> str:
    return "" if row is None else f"perplexity {math.exp(min(row.value / row.weight, 700.0)):.4g}"
