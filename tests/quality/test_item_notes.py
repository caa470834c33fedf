"""Each shape of lm-eval's requests as a note."""

import pytest

from tasks.data.text import Section
from tasks.quality.item_notes import SHOWN_CHARACTERS, item_note, section_notes, shortened
from tasks.quality.samples import ItemNote, Sample


def note(
    arguments: list, resps: list, target: object, metrics: tuple[str, ...] = ("acc",), question: str = ""
) -> ItemNote:
    sample = {"doc_id": 3, "arguments": arguments, "resps": [[each] for each in resps], "target": target,
              "metrics": list(metrics)}  # fmt: skip
    return item_note("task", sample, "hash", question)


def test_a_choice_names_both_answers_and_the_lead() -> None:
    arguments = [
        ("Example. Rome is in", " Chad"),
        ("Example. Rome is in", " Italy"),
        ("Example. Rome is in", " Peru"),
    ]
    made = note(arguments, [(-1.0, False), (-3.5, False), (-4.0, False)], 1, question="Rome is in")
    assert (made.item, made.prompt, made.target, made.answer) == ("3", "Rome is in", "Italy", "Chad")
    assert made.margin_nats == pytest.approx(-2.5)


def test_lengths_are_taken_out_where_only_the_normalized_metric_is_asked() -> None:
    arguments = [("Q", " no"), ("Q", " certainly not")]
    resps = [(-2.0, False), (-3.9, False)]
    assert note(arguments, resps, 0).answer == "no"
    assert note(arguments, resps, 0, ("acc_norm",)).answer == "certainly not"


def test_contexts_that_differ_are_the_choices() -> None:
    arguments = [("The cup fits since the cup", " is small"), ("The cup fits since the box", " is small")]
    made = note(arguments, [(-1.0, False), (-2.0, False)], 0)
    assert made.answer == made.target == "The cup fits since the cup"


def test_a_second_round_without_context_is_no_choice() -> None:
    arguments = [("Q", " a"), ("Q", " b"), ("", " a"), ("", " b")]
    made = note(
        arguments, [(-1.0, False), (-2.0, False), (-0.1, False), (-0.2, False)], 1, ("acc", "acc_mutual_info")
    )
    assert (made.target, made.answer, made.margin_nats) == ("b", "a", -1.0)


def test_one_continuation_a_completion_and_a_text() -> None:
    word = note([("The cat sat on the", " mat")], [(-2.0, False)], " mat")
    assert (word.target, word.answer, word.margin_nats) == ("mat", "something else", -2.0)
    assert note([("The cat sat on the", " mat")], [(-0.1, True)], " mat").answer == "mat"
    sums = note([("2 + 2?", {"until": []})], [" 4\n"], "#### 4")
    assert (sums.prompt, sums.target, sums.answer, sums.margin_nats) == ("2 + 2?", "#### 4", "4", None)
    text = note([("A whole text",)], [-40.0], "A whole text")
    assert (text.prompt, text.target, text.answer, text.margin_nats) == ("A whole text", "", "", None)


def test_long_texts_keep_both_ends() -> None:
    assert shortened("a\n b") == "a b"
    text = shortened("x" * 1000 + "end")
    assert text.startswith("x" * 100)
    assert text.endswith("end")
    assert len(text) <= SHOWN_CHARACTERS + len(" [...] ")


def test_sections_are_noted_once() -> None:
    rows = [Sample(task="text", metric=metric, item="s1", item_hash="h", cluster="s1", value=1.0, weight=9.0)
            for metric in ("kl", "perplexity")]  # fmt: skip
    sections = [
        Section(id="s1", topic="t", text="Lists are\nmutable."),
        Section(id="s2", topic="t", text="Not scored."),
    ]
    assert section_notes(rows, sections) == (
        ItemNote(task="text", item="s1", item_hash="h", prompt="Lists are mutable."),
    )
