"""One multiple-choice item of the embedded pack."""

import random
from collections.abc import Sequence
from typing import Literal

from tasks.store.record import Record

SplitName = Literal["search", "gate"]
SEARCH_SHARE = 0.25  # of the items that are not cut from text: the search only ranks, the gate judges


class Item(Record):
    """A context and choices of which one continues it.

    Attributes:
        id: unique in its task over both splits.
        cluster: what the item shares with others: its section of text, its template, its country.
        split: "search" or "gate".
        context: the text before the choice, without a space at its end.
        choices: continuations without their leading space.
        answer: index of the right one.
    """

    id: str
    cluster: str
    split: SplitName
    context: str
    choices: tuple[str, ...]
    answer: int


def shuffled_item(
    rng: random.Random,
    name: str,
    cluster: str,
    split: SplitName,
    context: str,
    right: str,
    wrong: Sequence[str],
) -> Item:
    """An item whose right choice stands at a random place."""
    choices = [right, *wrong]
    rng.shuffle(choices)
    return Item(
        id=name,
        cluster=cluster,
        split=split,
        context=context,
        choices=tuple(choices),
        answer=choices.index(right),
    )


def draw_split(rng: random.Random) -> SplitName:
    """Search or gate, by chance."""
    return "search" if rng.random() < SEARCH_SHARE else "gate"
