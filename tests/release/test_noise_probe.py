"""The batch-size probe: what it asks for again, and when it asks for more."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from configs.quality import Margins
from tasks.engines.protocol import ScoreRequest, TokenScores
from tasks.quality.sample_set import samples_of
from tasks.quality.samples import ItemNote, Samples
from tasks.release import noise_probe, scoring
from tasks.release.noise_probe import LED_ITEMS, Noise, OtherBatches
from tasks.release.scoring import CandidateScores
from tests.quality.test_gate import answers, text

JUDGED, SIZE = 150, 600
MARKED = 10**6  # no item: the side that is asked again says True to it
COUNT = 123  # of which none changes, at half of 5 %, a share of 3 points: (1 - 0.03)^122 < 0.025
ENGINE = object()
Asked = list[tuple[str, int, int]]


def scored(after: int, items: int, changes: Callable[[int], bool]) -> Samples:
    values = np.array([not changes(item) for item in range(items)], float)
    return samples_of(answers(values, "facts")[after:])


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], bool]], tuple[Noise, Asked]]:
    """Probe a candidate of which some answers change in other batches, by the number of the item."""

    def call(changes: Callable[[int], bool]) -> tuple[Noise, Asked]:
        asked: Asked = []

        def task(
            workspace: object, candidate: object, engine: object, name: str, items: int, after: int,
            among: frozenset[str] | None = None,
        ) -> Samples:  # fmt: skip
            again = isinstance(engine, OtherBatches)
            found = scored(after, items, changes if again else lambda item: False)
            if among is not None:
                asked.append(("near", after, len(among)))
                return samples_of(
                    (row for row in found.rows if row.item in among),
                    (note for note in found.notes if note.item in among),
                )
            asked.append(("again" if again else "first", after, items))
            return found

        nats = np.full(64, 3.0)
        judged = scored(0, JUDGED, lambda item: False)
        known = samples_of([*judged.rows, *text(nats)], judged.notes)
        monkeypatch.setattr(noise_probe, "samples", lambda workspace, key: known)
        monkeypatch.setattr(noise_probe, "judged_tasks", lambda _: {"facts": SIZE})
        monkeypatch.setattr(noise_probe, "_text", lambda *_: samples_of(text(nats + 1e-4)[:12]))
        monkeypatch.setattr(noise_probe, "_task", task)
        quality = SimpleNamespace(margins=Margins(accuracy=0.03))
        workspace = SimpleNamespace(config=SimpleNamespace(quality=quality))
        return noise_probe._probe(workspace, SimpleNamespace(name="int8"), "key", ENGINE), asked  # type: ignore[arg-type]

    return call


def test_where_nothing_changes_the_judged_items_are_asked_once_more_and_no_others(probe) -> None:
    found, asked = probe(lambda item: False)
    assert asked == [("again", 0, LED_ITEMS), ("again", LED_ITEMS, COUNT)]
    floors = {floor.metric: floor for floor in found.floors}
    accuracy = floors["accuracy"]
    assert (accuracy.items, accuracy.changed) == (COUNT, 0)
    assert 0.02 < accuracy.floor < 0.03
    perplexity = floors["perplexity"]
    assert (perplexity.items, perplexity.changed) == (12, 12)
    assert 0 < perplexity.floor < 1e-3


@pytest.mark.parametrize(
    ("moved_nats", "tipped", "steps", "method"),
    [
        (0.02, (), ["again"], "leads"),
        (1.0, (), ["again", "near"], "near ties"),
        (1.0, (60, 70, 80, 90), ["again", "near", "again", "first", "again", "first"], "counted"),
    ],
)
def test_a_few_items_prove_the_margin_where_leads_hardly_move_and_near_ties_where_they_do_not_tip(
    probe, monkeypatch, moved_nats, tipped, steps, method
) -> None:
    """Every item leads by 2 nats: a movement of 0.02 tips none; one of 1 could, and where it does answers are counted."""

    def with_leads(after: int, items: int, changes: Callable[[int], bool]) -> Samples:
        rows = plain(after, items, changes).rows
        again = changes(MARKED)
        moved = (moved_nats * (-1) ** int(row.item) if again else 0.0 for row in rows)
        notes = (
            ItemNote(
                task=row.task, item=row.item, item_hash=row.item_hash, prompt="?",
                margin_nats=2 + by if row.value else -0.1,
            )
            for row, by in zip(rows, moved, strict=True)
        )  # fmt: skip
        return samples_of(rows, notes)

    plain = scored
    monkeypatch.setitem(globals(), "scored", with_leads)
    found, asked = probe(lambda item: item in (MARKED, *tipped))
    assert [who for who, *_ in asked] == steps
    (accuracy,) = (floor for floor in found.floors if floor.metric == "accuracy")
    assert (accuracy.method, accuracy.changed) == (method, len(tipped))
    assert accuracy.floor < 0.03
    assert accuracy.alpha <= noise_probe.ALPHA


def test_where_answers_change_as_many_more_are_drawn_as_would_prove_the_margin(probe) -> None:
    found, asked = probe(lambda item: item in (5, 50))
    # 2 of 123 do not prove 3 points, 2 of about 270 do: only what is new is asked, of the gate's side what it had not judged
    last = asked[-1][2]
    assert asked == [
        ("again", 0, LED_ITEMS),
        ("again", LED_ITEMS, COUNT),
        ("again", COUNT, last),
        ("first", JUDGED, last),
    ]
    assert 255 <= last <= 300
    (accuracy,) = (floor for floor in found.floors if floor.metric == "accuracy")
    assert (accuracy.items, accuracy.changed) == (last, 2)
    assert accuracy.floor < 0.03


def test_where_the_margin_cannot_be_proven_all_items_are_asked(probe) -> None:
    found, asked = probe(lambda item: item % 20 == 0)
    assert [items for who, _, items in asked if who == "again"][-1] == SIZE
    (accuracy,) = (floor for floor in found.floors if floor.metric == "accuracy")
    assert (accuracy.items, accuracy.changed) == (SIZE, SIZE // 20)
    assert accuracy.floor > 0.05


def test_other_batches_hold_what_has_one_context_whole() -> None:
    class Recording:
        def score(self, requests: list[ScoreRequest], *, with_logits: bool) -> Iterator[TokenScores]:
            sizes.append(len(requests))
            return iter(TokenScores(np.zeros(1, np.float32), np.ones(1, np.bool_), None) for _ in requests)

    def asked(context_tokens: int, *choices: int) -> list[int]:
        sizes.clear()
        requests = [
            ScoreRequest((context,) * context_tokens, (choice,))
            for context, count in enumerate(choices)
            for choice in range(count)
        ]
        scores = list(OtherBatches(Recording()).score(requests))  # type: ignore[arg-type]
        assert len(scores) == len(requests)
        return list(sizes)

    sizes: list[int] = []
    assert asked(8, 4, 4, 4, 30) == [8, 34]
    assert asked(1, 12) == [5, 5, 2]  # texts without a context


@pytest.mark.parametrize("keeps_prompts", [False, True])
def test_an_engine_that_keeps_prompts_is_opened_anew_to_be_asked_again(monkeypatch, keeps_prompts):
    opened, closed = [], []

    def open_candidate(*_: object) -> SimpleNamespace:
        number = len(opened)
        opened.append(number)
        return SimpleNamespace(close=lambda: closed.append(number))

    monkeypatch.setattr(scoring, "open_candidate", open_candidate)
    monkeypatch.setattr(scoring, "source_candidate", lambda *_: None)
    engine = SimpleNamespace(scheduler=SimpleNamespace(prefix_caching=keeps_prompts))
    reference = SimpleNamespace(config=SimpleNamespace(quality=SimpleNamespace(reference=None)))
    with CandidateScores(reference, SimpleNamespace(engine=engine), "gate") as scores:  # type: ignore[arg-type]
        first = scores.open()
        assert scores.open() is first
        assert (scores.open_again() is first) != keeps_prompts
        assert closed == ([0] if keeps_prompts else [])
    assert closed == opened == list(range(1 + keeps_prompts))
