"""The batch-size probe: what it asks for again, and when it asks for more."""

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from configs.quality import Margins
from tasks.quality.sample_set import samples_of
from tasks.quality.samples import Samples
from tasks.release import noise_probe
from tasks.release.noise_probe import Noise, OtherBatches
from tests.quality.test_gate import answers, text

JUDGED, SIZE = 150, 600
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
            workspace: object, candidate: object, engine: object, name: str, items: int, after: int
        ) -> Samples:
            again = isinstance(engine, OtherBatches)
            asked.append(("again" if again else "first", after, items))
            return scored(after, items, changes if again else lambda item: False)

        nats = np.full(64, 3.0)
        known = samples_of([*scored(0, JUDGED, lambda item: False).rows, *text(nats)])
        monkeypatch.setattr(noise_probe, "samples", lambda workspace, key: known)
        monkeypatch.setattr(noise_probe, "open_candidate", lambda *_: nullcontext(ENGINE))
        monkeypatch.setattr(noise_probe, "judged_tasks", lambda _: {"facts": SIZE})
        monkeypatch.setattr(noise_probe, "_text", lambda *_: samples_of(text(nats + 1e-4)[:12]))
        monkeypatch.setattr(noise_probe, "_task", task)
        quality = SimpleNamespace(margins=Margins(accuracy=0.03))
        workspace = SimpleNamespace(config=SimpleNamespace(quality=quality))
        return noise_probe._probe(workspace, SimpleNamespace(name="int8"), "key"), asked  # type: ignore[arg-type]

    return call


def test_where_nothing_changes_the_judged_items_are_asked_once_more_and_no_others(probe) -> None:
    found, asked = probe(lambda item: False)
    assert asked == [("again", 0, 123)]
    floors = {floor.metric: floor for floor in found.floors}
    accuracy = floors["accuracy"]
    assert (accuracy.items, accuracy.changed) == (123, 0)
    assert 0.02 < accuracy.floor < 0.03
    perplexity = floors["perplexity"]
    assert (perplexity.items, perplexity.changed) == (12, 12)
    assert 0 < perplexity.floor < 1e-3


def test_where_answers_change_as_many_more_are_drawn_as_would_prove_the_margin(probe) -> None:
    found, asked = probe(lambda item: item in (5, 50))
    # 2 of 123 do not prove 3 points, 2 of about 275 do: only what is new is asked, of the gate's side what it had not judged
    last = asked[-1][2]
    assert asked == [("again", 0, 123), ("again", 123, last), ("first", JUDGED, last)]
    assert 265 <= last <= 290
    (accuracy,) = (floor for floor in found.floors if floor.metric == "accuracy")
    assert (accuracy.items, accuracy.changed) == (last, 2)
    assert accuracy.floor < 0.03


def test_where_the_margin_cannot_be_proven_all_items_are_asked(probe) -> None:
    found, asked = probe(lambda item: item % 20 == 0)
    assert [items for who, _, items in asked if who == "again"][-1] == SIZE
    (accuracy,) = (floor for floor in found.floors if floor.metric == "accuracy")
    assert (accuracy.items, accuracy.changed) == (SIZE, SIZE // 20)
    assert accuracy.floor > 0.05
