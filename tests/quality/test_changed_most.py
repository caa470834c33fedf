"""What a reviewer sees first: flips by how far the lead moved, then the text."""

import math

from tasks.quality.changed_most import changed_most
from tasks.quality.samples import ItemNote, Sample, Samples


def answers(values: dict[str, float], leads: dict[str, float], said: str, metric: str = "acc") -> Samples:
    rows = tuple(
        Sample(task="facts", metric=metric, item=item, item_hash=f"h{item}", cluster=item, value=value)
        for item, value in values.items()
    )
    notes = tuple(
        ItemNote(task="facts", item=item, item_hash=f"h{item}", prompt=f"Question {item}?", target="Rome",
                 answer="Rome" if values[item] else said, margin_nats=lead)
        for item, lead in leads.items()
    )  # fmt: skip
    return Samples(items_digest="0" * 64, rows=rows, notes=notes)


def text(values: dict[str, float], divergences: dict[str, float] | None = None) -> Samples:
    def rows(metric: str, nats: dict[str, float]) -> list[Sample]:
        return [
            Sample(task="text", metric=metric, item=i, item_hash="h", cluster=i, value=v, weight=10.0)
            for i, v in nats.items()
        ]

    notes = tuple(ItemNote(task="text", item=i, item_hash="h", prompt=f"Section {i}") for i in values)
    table = (*rows("perplexity", values), *rows("kl", divergences or {}))
    return Samples(items_digest="0" * 64, rows=table, notes=notes)


def joined(*parts: Samples) -> Samples:
    return Samples(
        items_digest="0" * 64,
        rows=tuple(row for part in parts for row in part.rows),
        notes=tuple(note for part in parts for note in part.notes),
    )


def test_flips_of_both_kinds_come_first_by_how_far_the_lead_moved() -> None:
    before = answers({"a": 1, "b": 0, "c": 1, "d": 1}, {"a": 0.5, "b": -3.0, "c": 0.1, "d": 9.0}, "Oslo")
    after = answers({"a": 0, "b": 1, "c": 0, "d": 1}, {"a": -0.5, "b": 1.0, "c": -0.1, "d": 2.0}, "Bern")
    rows = changed_most(joined(before, text({"s": 20.0})), joined(after, text({"s": 21.0}, {"s": 5.0})))
    assert [(row.item, row.change) for row in rows] == [
        ("b", "became right"), ("a", "became wrong"), ("c", "became wrong"), ("s", "diverged"),
    ]  # fmt: skip
    first = rows[0]
    assert (first.prompt, first.target, first.source, first.candidate) == (
        "Question b?",
        "Rome",
        "Oslo",
        "Rome",
    )
    assert first.change_nats == 4.0


def test_sections_are_ranked_by_divergence_and_by_likelihood_in_turn() -> None:
    before = text({"far": 20.0, "worse": 20.0, "better": 20.0, "same": 20.0})
    after = text({"far": 20.1, "worse": 24.0, "better": 17.0, "same": 20.0},
                 {"far": 3.0, "worse": 1.0, "better": 0.5, "same": 0.0})  # fmt: skip
    rows = changed_most(before, after)
    assert [(row.item, row.metric, row.change) for row in rows] == [
        ("far", "kl", "diverged"), ("worse", "perplexity", "less likely"), ("better", "perplexity", "more likely"),
    ]  # fmt: skip
    assert [round(row.change_nats, 3) for row in rows] == [0.3, 0.4, -0.3]  # a token, of 10
    assert rows[1].source == f"perplexity {math.exp(2.0):.4g}"
    assert rows[1].prompt == "Section worse"


def test_the_number_of_rows_is_kept_and_the_text_has_its_share() -> None:
    names = [str(number) for number in range(30)]
    before = joined(answers(dict.fromkeys(names, 1.0), {}, ""), text(dict.fromkeys(names, 20.0)))
    after = joined(
        answers(dict.fromkeys(names, 0.0), {}, ""),
        text(dict.fromkeys(names, 22.0), dict.fromkeys(names, 1.0)),
    )
    rows = changed_most(before, after, most=8)
    assert [row.task for row in rows] == ["facts"] * 6 + ["text"] * 2
    assert (rows[0].source, rows[0].candidate, rows[0].change_nats) == (
        "right",
        "wrong",
        None,
    )  # nothing more is known


def test_the_metric_that_the_gate_judges_is_shown() -> None:
    before = joined(answers({"a": 1, "b": 1}, {}, ""), answers({"a": 1, "b": 1}, {}, "", "acc_norm"))
    after = joined(answers({"a": 0, "b": 1}, {}, ""), answers({"a": 1, "b": 0}, {}, "", "acc_norm"))
    assert [(row.item, row.metric) for row in changed_most(before, after)] == [("a", "acc")]


def test_a_model_against_itself_changed_nothing() -> None:
    same = joined(answers({"a": 1, "b": 0}, {"a": 1.0, "b": -1.0}, "Oslo"), text({"s": 20.0}, {"s": 0.0}))
    assert changed_most(same, same) == ()
