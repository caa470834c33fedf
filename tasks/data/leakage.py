"""Do training rows repeat what the model will be judged on?

Three ways are looked for, each on words alone (`normalized`): a row, or one paragraph of it, is a gate item; a row contains a
gate item of at least CONTAINED_WORDS words (13-grams are what GPT-3 was checked with; Brown et al. 2020, arXiv:2005.14165, appendix C);
a row, or one paragraph of it, shares LEAST_SIMILARITY of its shingles with an item.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tasks.data.near_duplicates import NearDuplicates, normalized

LEAST_WORDS = 4  # shorter items ("Yes, of course") say nothing
CONTAINED_WORDS = 13
LEAST_SIMILARITY = 0.7
_SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class Leak:
    """A training row that repeats a gate item.

    Attributes:
        row: index of the row, from 0.
        item: index of the item, from 0.
        similarity: Jaccard over shingles; 1 where the item stands in the row word by word.
        text: the beginning of the item.
    """

    row: int
    item: int
    similarity: float
    text: str


def leaks(rows: Sequence[str], items: Sequence[str]) -> tuple[Leak, ...]:
    """Every row that repeats an item, with the item it is closest to.

    Args:
        rows: training texts.
        items: texts that the gate judges on; those below LEAST_WORDS words are left out.
    """
    normal_items = [normalized(item) for item in items]
    kept = [index for index, text in enumerate(normal_items) if len(text.split()) >= LEAST_WORDS]
    exact = {normal_items[index]: index for index in reversed(kept)}
    contained = _by_first_words(normal_items, kept)
    near = NearDuplicates([normal_items[index] for index in kept], LEAST_SIMILARITY)
    found = []
    for number, row in enumerate(rows):
        hit = _exact(row, exact, contained, normal_items)
        if hit is None and (close := max(_near(row, near), key=lambda pair: pair[1], default=None)):
            hit = (kept[close[0]], close[1])
        if hit is not None:
            found.append(Leak(number, hit[0], hit[1], " ".join(items[hit[0]].split())[:_SHOWN_CHARACTERS]))
    return tuple(found)


def _by_first_words(normal_items: Sequence[str], kept: Sequence[int]) -> dict[tuple[str, ...], list[int]]:
    """Items long enough to be looked for inside rows, by their first words."""
    table: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for index in kept:
        words = normal_items[index].split()
        if len(words) >= CONTAINED_WORDS:
            table[tuple(words[:CONTAINED_WORDS])].append(index)
    return dict(table)


def _exact(
    row: str,
    exact: dict[str, int],
    contained: dict[tuple[str, ...], list[int]],
    normal_items: Sequence[str],
) -> tuple[int, float] | None:
    for piece in _pieces(row):
        if piece in exact:
            return exact[piece], 1.0
    normal = normalized(row)
    words = normal.split()
    for first in range(len(words) - CONTAINED_WORDS + 1):
        for index in contained.get(tuple(words[first : first + CONTAINED_WORDS]), ()):
            length = normal_items[index].count(" ") + 1
            if " ".join(words[first : first + length]) == normal_items[index]:
                return index, 1.0
    return None


def _near(row: str, near: NearDuplicates) -> Iterator[tuple[int, float]]:
    return (hit for piece in _pieces(row) if (hit := near.find(piece)) is not None)


def _pieces(row: str) -> Iterator[str]:
    """The row and, where there are several, its lines (a message, a paragraph), normalised; empty ones left out."""
    lines = row.splitlines()
    for piece in (row, *lines) if len(lines) > 1 else (row,):
        if normal := normalized(piece):
            yield normal
