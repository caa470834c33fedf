"""Last-word choice: a passage of held-out text cut before a word, and four words that may stand there.

A choice among words, not the greedy word of the whole vocabulary: technical prose lets a 135M model guess one
word in four outright, and an item that nobody can answer has no signal. The wrong words are as frequent as
the right one, have its ending and come from the same text, so neither grammar nor frequency alone tells them
apart.
"""

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from tasks.data.text import Section
from tasks.quality.pack.item import Item, SplitName, shuffled_item

CHOICES = 4
CONTEXT_CHARACTERS = 88  # about 20 tokens: evaluation time is the scarcest resource
LEAST_CONTEXT_WORDS = 6
LEAST_COUNT = 4  # of a word in the text: frequent words are single tokens in most vocabularies
LEAST_LETTERS = 4
NEAR_IN_FREQUENCY = 24  # wrong words are drawn from this many neighbours in the ranking of frequency
_ENDINGS = re.compile(r"(ing|ed|ly|s|)$")


def last_word_items(rng: random.Random, text: dict[SplitName, Sequence[Section]]) -> Iterator[Item]:
    """Every fitting word of every section; items of one section are a cluster."""
    ranking = _ranking([section for sections in text.values() for section in sections])
    for split, sections in text.items():
        for section in sections:
            for number, (context, word) in enumerate(_cuts(section.text, ranking)):
                wrong = _wrong_words(rng, word, context, ranking[_ending(word)])
                if len(wrong) == CHOICES - 1:
                    yield shuffled_item(
                        rng, f"{section.id}-{number:03d}", section.id, split, context, word, wrong
                    )


def _ranking(sections: Sequence[Section]) -> dict[str, list[str]]:
    """Ending to its words, most frequent first."""
    counts = Counter(word for section in sections for word in section.text.split() if _is_plain(word))
    ranking: dict[str, list[str]] = {}
    for word, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])):
        if count >= LEAST_COUNT:
            ranking.setdefault(_ending(word), []).append(word)
    return ranking


def _cuts(text: str, ranking: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    """(context, word): contexts begin at a word, and at the paragraph where that is near enough."""
    for paragraph in text.split("\n\n"):
        words = paragraph.split()
        for at in range(LEAST_CONTEXT_WORDS, len(words)):
            if words[at] in ranking.get(_ending(words[at]), ()):
                context = " ".join(words[:at])
                if len(context) > CONTEXT_CHARACTERS:
                    context = context[-CONTEXT_CHARACTERS:].split(" ", 1)[1]
                if len(context.split()) >= LEAST_CONTEXT_WORDS:
                    yield context, words[at]


def _wrong_words(rng: random.Random, word: str, context: str, ranked: list[str]) -> list[str]:
    at = ranked.index(word)
    start = max(0, min(at - NEAR_IN_FREQUENCY // 2, len(ranked) - NEAR_IN_FREQUENCY - 1))
    near = [other for other in ranked[start : start + NEAR_IN_FREQUENCY + 1] if other != word]
    return rng.sample(near, min(CHOICES - 1, len(near)))


def _is_plain(word: str) -> bool:
    return word.isascii() and word.isalpha() and word.islower() and len(word) >= LEAST_LETTERS


def _ending(word: str) -> str:
    found = _ENDINGS.search(word)
    return found.group() if found else ""
