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
Asked = list[tuple[str, int]]


def scored(items: int, changed: int) -> Samples:
    values = np.ones(items)
    values[:changed] = 0
    return samples_of(answers(values, "facts"))


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], int]], tuple[Noise, Asked]]:
    """Probe a candidate of which so many of n answers change in other batches."""

    def call(changes: Callable[[int], int]) -> tuple[Noise, Asked]:
        asked: Asked = []

        def task(workspace: object, candidate: object, engine: object, name: str, items: int) -> Samples:
            again = isinstance(engine, OtherBatches)
            asked.append(("again" if again else "first", items))
            return scored(items, changes(items) if again else 0)

        nats = np.full(64, 3.0)
        known = samples_of([*scored(JUDGED, 0).rows, *text(nats)])
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
    found, asked = probe(lambda items: 0)
    assert asked == [("again", 110)]
    floors = {floor.metric: floor for floor in found.floors}
    accuracy = floors["accuracy"]
    assert (accuracy.items, accuracy.changed) == (110, 0)
    assert 0.02 < accuracy.floor < 0.03
    perplexity = floors["perplexity"]
    assert (perplexity.items, perplexity.changed) == (12, 12)
    assert 0 < perplexity.floor < 1e-3


def test_where_answers_change_more_items_are_drawn_until_the_margin_is_proven_or_all_were_asked(
    probe,
) -> None:
    found, asked = probe(lambda items: 2)
    # 2 of 110 do not prove 3 points, 2 of 330 do; 330 is more than the gate judged, so both sides are asked
    assert asked == [("again", 110), ("again", 330), ("first", 330)]
    assert max(floor.floor for floor in found.floors if floor.metric == "accuracy") < 0.03
    found, asked = probe(lambda items: items // 20)
    assert [items for who, items in asked if who == "again"] == [110, 330, SIZE]
    (accuracy,) = (floor for floor in found.floors if floor.metric == "accuracy")
    assert accuracy.floor > 0.05
