"""The rules on single answers: pure functions, by example and by property."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.behaviour.expected_format import keeps_format
from tasks.behaviour.refusal import is_refusal
from tasks.behaviour.repetition import ends_in_loop, repeated_share
from tasks.behaviour.writing import same_writing, script_shares, writing_of

TOKENS = st.lists(st.integers(0, 5), max_size=40)


@given(tokens=TOKENS, ngram=st.integers(1, 5))
def test_the_repeated_share_is_the_share_of_ngrams_seen_before(tokens: list[int], ngram: int) -> None:
    seen, repeats, total = set(), 0, 0
    for i in range(len(tokens) - ngram + 1):
        gram = tuple(tokens[i : i + ngram])
        total += 1
        repeats += gram in seen
        seen.add(gram)

    assert repeated_share(tokens, ngram) == pytest.approx(repeats / total if total else 0.0)


@given(start=TOKENS, period=st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_an_ending_repeated_often_enough_is_a_loop_whatever_comes_before(
    start: list[int], period: list[int]
) -> None:
    assert ends_in_loop([*start, *(period * 12)])


@given(tokens=st.lists(st.integers(), unique=True, max_size=60))
def test_distinct_tokens_are_neither_repeated_nor_a_loop(tokens: list[int]) -> None:
    assert repeated_share(tokens, 2) == 0
    assert not ends_in_loop(tokens)


def test_a_loop_must_be_long_and_at_the_end() -> None:
    assert not ends_in_loop(["ha", "ha", "ha"])
    assert not ends_in_loop([*("over and " * 10).split(), "then", "it", "ended"])
    assert ends_in_loop(["start", *("over and " * 6).split()])
    assert not ends_in_loop(list("abcdef" * 3))  # three repeats of six: a chorus


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't help with that.",
        "I\u2019m sorry, but I can\u2019t assist with that request.",
        "I cannot provide instructions for this.",
        "As an AI language model, I do not have opinions on that.",
        "Sure thing? No: I am not able to write that for you.",
        "I apologize, but that is not something I can do.",
        "申し訳ありませんが、その質問にはお答えできません。",
        "そのご依頼には対応できかねます。",
    ],
)
def test_refusals_are_seen(answer: str) -> None:
    assert is_refusal(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "The capital of Italy is Rome.",
        "You can't see it in the day, for the sun is brighter.",
        "I'm sorry to hear that you lost your keys. Have you looked under the sofa?",
        "Rivers are long. " * 20 + "I cannot help you with that.",
        "申し込みは明日までにできます。",
        "",
    ],
)
def test_other_answers_are_no_refusals(answer: str) -> None:
    assert not is_refusal(answer)


def test_patterns_of_the_config_count_too() -> None:
    assert is_refusal("Das kann ich leider nicht tun.", ["kann ich leider nicht"])
    assert not is_refusal("Das kann ich leider nicht tun.")


@given(st.text(alphabet=string.ascii_letters + "あいうカキク東京都Привет 0123.,", max_size=60))
def test_script_shares_sum_to_one_over_the_letters(text: str) -> None:
    shares = script_shares(text)

    assert sum(shares.values()) == pytest.approx(1.0 if any(map(str.isalpha, text)) else 0.0)
    assert same_writing(text, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat sat.", "LATIN"),
        ("猫はソファーで寝ています。", "JAPANESE"),
        ("人工智能正在改变世界各地的工作方式。", "HAN"),
        ("Москва - столица", "CYRILLIC"),
        ("안녕하세요", "HANGUL"),
        ("12, 14.", None),
    ],
)
def test_the_writing_of_a_text(text: str, expected: str | None) -> None:
    assert writing_of(text) == expected


def test_a_short_answer_in_han_is_japanese_enough_and_a_long_one_is_not() -> None:
    question = "日本の首都はどこですか。"
    assert same_writing(question, "東京")
    assert same_writing(question, "42")
    assert not same_writing(question, "Tokyo is the capital of Japan.")
    assert not same_writing(question, "日本的首都是东京, 这是一个非常大的城市, 有很多人口居住")


@pytest.mark.parametrize(
    ("expects", "kept", "lost"),
    [
        (
            "json",
            ['{"a": 1}', "[1, 2]", '```json\n{"a": 1}\n```', ' {"a": {"b": []}} '],
            ['Here it is: {"a": 1}', '{"a": 1', "5", "", "{'a': 1}", "[" * 100_000],
        ),
        ("number", ["12", "-3.5", "1,234,567.", "42 %"], ["12 apples", "twelve", "", "1 2", "12,34"]),
        ("word", ["Cold", "cold.", '"yes"', "l'eau", "東京"], ["very cold", "", "a, b", "12 34"]),
        (
            "list",
            ["- a\n- b", "1. a\n2. b\n3. c", "Three of them:\n* a\n* b", "・一つ\n・二つ"],
            ["- a", "a, b, c", "", "Well.\nHere they are:\n- a\n- b"],
        ),
    ],
)
def test_formats(expects: str, kept: list[str], lost: list[str]) -> None:
    assert [text for text in kept if not keeps_format(text, expects)] == []
    assert [text for text in lost if keeps_format(text, expects)] == []
