"""Next-sentence choice: a sentence of held-out text, and three beginnings of which one follows it."""

import random
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from tasks.data.text import Section
from tasks.quality.pack.item import Item, SplitName, shuffled_item

CHOICES = 3
CONTEXT_WORDS, CHOICE_WORDS = 20, 9
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


def next_sentence_items(rng: random.Random, text: dict[SplitName, Sequence[Section]]) -> Iterator[Item]:
    """Neighbouring sentences of one paragraph; wrong ones come from other sections. Clusters are sections."""
    for split, sections in text.items():
        starts = {section.id: list(_starts(section)) for section in sections}
        for section in sections:
            others = [start for key, found in starts.items() if key != section.id for start in found]
            if len(others) < CHOICES:
                continue
            for number, (first, second) in enumerate(_neighbours(section)):
                wrong = rng.sample([start for start in others if start != second], CHOICES - 1)
                yield shuffled_item(
                    rng, f"{section.id}-{number:03d}", section.id, split, first, second, wrong
                )


def _sentences(section: Section) -> Iterator[list[str]]:
    for paragraph in section.text.split("\n\n"):
        yield [sentence for sentence in _SENTENCE.split(paragraph) if len(sentence.split()) >= 5]


def _starts(section: Section) -> Iterator[str]:
    return (_beginning(sentence) for sentences in _sentences(section) for sentence in sentences)


def _neighbours(section: Section) -> Iterator[tuple[str, str]]:
    for sentences in _sentences(section):
        for first, second in pairwise(sentences):
            yield " ".join(first.split()[-CONTEXT_WORDS:]), _beginning(second)


def _beginning(sentence: str) -> str:
    return " ".join(sentence.split()[:CHOICE_WORDS])
