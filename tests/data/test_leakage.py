"""Training rows that repeat gate items are found; rows on the same subject in other words are not."""

import random

import pytest

from tasks.data.leakage import leaks
from tasks.data.near_duplicates import NearDuplicates, normalized, shingles, similarity

ITEM = (
    "The keys to the cabinet in the old hall are on the table beside the lamp, and nobody has asked for them."
)
WORDS = [f"word{i}" for i in range(400)]


def words(count: int, seed: int) -> list[str]:
    return random.Random(seed).choices(WORDS, k=count)


def test_case_punctuation_and_width_do_not_hide_a_copy() -> None:
    shouted = (
        "the KEYS to the cabinet in the old hall are on the table - beside the "
        "ｌａｍｐ: and nobody has asked for them"  # noqa: RUF001
    )
    (leak,) = leaks(["something else entirely, and long enough", shouted], ["", ITEM])
    assert (leak.row, leak.item, leak.similarity) == (1, 1, 1.0)
    assert leak.text == ITEM[:60]


def test_an_item_inside_a_long_row_and_as_one_message_of_a_chat() -> None:
    filler = " ".join(words(300, 1))
    short = "Paris lies on the Seine"
    found = leaks([f"{filler} {ITEM} {filler}", f"Where does Paris lie?\n{short}.\nThanks!"], [ITEM, short])
    assert [(leak.row, leak.item, leak.similarity) for leak in found] == [(0, 0, 1.0), (1, 1, 1.0)]


def test_a_few_changed_words_are_a_near_duplicate() -> None:
    original = words(120, 2)
    changed = list(original)
    for place in (10, 50, 90):
        changed[place] = "other"
    (leak,) = leaks([" ".join(changed)], [" ".join(words(120, 3)), " ".join(original)])
    assert leak.item == 1
    assert leak.similarity == pytest.approx((118 - 9) / (118 + 9))


def test_the_same_subject_in_other_words_is_no_leak() -> None:
    other = "Nobody asked where the keys of the cabinet were; they lay beside a lamp on the table of the old hall."
    assert leaks([other, " ".join(words(120, 4))], [ITEM, " ".join(words(120, 5))]) == ()


def test_an_item_of_three_words_accuses_nobody() -> None:
    assert leaks(["Yes, of course\nand then some more"], ["Yes, of course"]) == ()


def test_pairs_above_the_threshold_are_found_and_others_are_not() -> None:
    """Against all pairs compared one by one."""
    rng = random.Random(0)
    originals = [" ".join(words(60, seed)) for seed in range(40)]
    asked = []
    for text in originals:
        tokens = text.split()
        for place in rng.sample(range(60), rng.randrange(12)):
            tokens[place] = "new"
        asked.append(" ".join(tokens))
    index = NearDuplicates([normalized(text) for text in originals], 0.7)
    for number, text in enumerate(asked):
        truth = similarity(shingles(normalized(text)), shingles(normalized(originals[number])))
        assert index.find(normalized(text)) == ((number, truth) if truth >= 0.7 else None)
