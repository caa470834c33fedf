"""A space in the rollout, on the fakes of test_branches: searched, continued after a kill, and not ended by a candidate that fails."""

import resource
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

import flows.rollout as rollout_module
import tasks.quantization.task as quantize_task
from flows.failures import bad_input
from tasks.release import measuring
from tasks.release.stage_result import StageResult
from tasks.release.summary import RolloutSummary
from tests.flows import test_branches
from tests.flows.test_branches import World

MIB = 2**20
world = test_branches.world  # the fixture
SPACE = "{engine: [openvino], group_size: [32], kv_cache: [u8, f32]}"
NOISE = {"int8 sym per channel": 0.06, "int4 asym g32": 1.4}
BYTES = {"int8 sym per channel": 1_000_000, "int4 asym g32": 520_000}


class Searched:
    """Rollouts over the space, and what the quantize stage said in the last one."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world, self.stage = world, None
        for name, value in NOISE.items():
            monkeypatch.setitem(test_branches.NOISE, name, value)
            monkeypatch.setitem(test_branches.BYTES, name, BYTES[name])
        quantize = quantize_task.quantize

        def watched(*arguments: object, **more: object) -> StageResult:
            self.stage = quantize(*arguments, **more)
            return self.stage

        monkeypatch.setattr(quantize_task, "quantize", watched)

    def run(self, *, space: str = SPACE, candidates: str = "[]", more: str = "") -> RolloutSummary:
        recipe = self.world.root / "space.yaml"
        text = test_branches.CONFIG.format(
            model=self.world.model, goals="{}", candidates=f"{candidates}, space: {space}", more=more, tries=1
        )
        recipe.write_text(text)
        self.world.opened, self.stage = 0, None
        return RolloutSummary.model_validate(rollout_module.rollout.fn(str(recipe), []).data)

    @property
    def results(self) -> dict[str, object]:
        assert self.stage is not None, "the stage was not computed"
        return {each.name: each for each in self.stage.candidates}


@pytest.fixture
def searched(world: World, monkeypatch: pytest.MonkeyPatch) -> Searched:
    return Searched(world, monkeypatch)


def finished(home: Path) -> dict[str, int]:
    """Remembered results and when each was written."""
    return {
        path.name: path.stat().st_mtime_ns
        for path in (home / "results").glob("*.json")
        if path.name.startswith(("samples-", "measurement-"))
    }


def test_the_best_of_a_space_is_released_and_what_is_hopeless_is_not_built(searched):
    summary = searched.run()
    assert (summary.verdict, summary.exit_code) == ("PASS", 0)
    quantize = next(stage for stage in summary.stages if stage.stage == "quantize")
    assert quantize.reason.startswith("openvino int8 ")
    assert len(searched.results) == 8  # every point of the space is accounted for
    far = [each for name, each in searched.results.items() if "int4" in name]
    assert all(each.dropped is not None or each.screen["kl_nats"] > 0.1 for each in far)
    untried = [each for each in searched.results.values() if each.dropped and "not tried" in each.dropped]
    assert untried
    assert "KL is predicted to be" in untried[0].dropped
    assert all(
        "perf/brief_tokens_per_s" in each.metrics for each in searched.results.values() if each.measurement
    )

    again = searched.run()
    assert searched.world.opened == 0
    assert all(stage.cached for stage in again.stages if stage.verdict != "SKIPPED")


def test_what_is_named_is_measured_beside_the_space_and_not_searched_again(searched):
    named = "[{engine: openvino, weights: {bits: 8, symmetric: false}, kv_cache: [u8]}]"
    assert searched.run(candidates=named).verdict == "PASS"
    names = [each.name for each in searched.stage.candidates]
    assert len(names) == len(set(names)) == 8
    assert names[0] == "openvino int8 asym per channel, u8 cache"
    assert searched.stage.candidates[0].measurement is not None


def test_a_kill_in_mid_search_loses_the_candidate_in_progress_and_no_more(searched, monkeypatch, tmp_path):
    seen = []

    def dies_at_the_second(store, checkpoint, engine, weights, calibration, **more):
        if weights.label not in seen and weights.bits != 32:
            seen.append(weights.label)
            if len(seen) == 2:
                raise KeyboardInterrupt
        return searched.world.build(store, checkpoint, engine, weights, calibration, **more)

    monkeypatch.setattr(measuring, "build_artifact", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        searched.run()
    before = finished(tmp_path / "store")
    assert len(before) >= 4  # the source's scores and speed, and the first candidate's
    assert searched.run().verdict == "PASS"
    assert {name: finished(tmp_path / "store").get(name) for name in before} == before
    assert "quantize" in [stage.stage for stage in searched.run().stages if stage.cached]


@contextmanager
def at_most_further(mib: int):
    """A real limit of the address space, lifted again at the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + mib * MIB, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def by_numpy() -> None:
    np.ones(1024 * MIB, np.uint8)


def by_torch() -> None:
    import torch

    torch.ones(1024 * MIB, dtype=torch.uint8)


@pytest.mark.parametrize("allocate", [by_numpy, by_torch])
def test_a_candidate_that_runs_out_of_memory_is_recorded_and_tried_again(
    searched, monkeypatch, allocate: Callable[[], None]
):
    def greedy(store, checkpoint, engine, weights, calibration, **more):
        if weights.label == "int8 asym per channel":
            with at_most_further(256):
                allocate()
        return searched.world.build(store, checkpoint, engine, weights, calibration, **more)

    named = "[{engine: openvino, weights: {bits: 8, symmetric: false}, kv_cache: [u8]}]"
    monkeypatch.setattr(measuring, "build_artifact", greedy)
    summary = searched.run(candidates=named)
    assert summary.verdict == "PASS"  # another one is proposed
    failed = searched.results["openvino int8 asym per channel, u8 cache"]
    assert failed.error.startswith("MemoryError")
    assert failed.measurement is None

    monkeypatch.setattr(measuring, "build_artifact", searched.world.build)
    summary = searched.run(candidates=named)
    assert not next(stage for stage in summary.stages if stage.stage == "quantize").cached
    assert searched.results["openvino int8 asym per channel, u8 cache"].error is None


def test_a_point_of_the_space_that_fails_does_not_end_the_search(searched):
    searched.world.break_engine = lambda weights: weights == "int8 asym per channel"
    assert searched.run().verdict == "PASS"
    failed = [each for each in searched.results.values() if each.error]
    assert failed
    assert all("int8 asym" in each.name and each.error.startswith("EngineError") for each in failed)


def test_a_budget_that_is_spent_is_said_of_what_was_left(searched):
    summary = searched.run(
        candidates="[{engine: openvino, weights: {bits: 8, symmetric: false}, kv_cache: [u8]}], budget_minutes: 1.0e-6"
    )
    assert summary.verdict == "PASS"
    left = [
        each for each in searched.results.values() if each.dropped and "the budget was spent" in each.dropped
    ]
    assert left
    assert sum(each.measurement is not None for each in searched.results.values()) == 1


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (['{"text": "fine"}', '{"text": '], "text.jsonl:2: not JSON"),
        (['{"text": "One sentence is not enough to calibrate on."}'], "sections of at most 300 characters"),
    ],
)
def test_a_calibration_text_that_is_corrupt_or_too_short_is_bad_input(searched, tmp_path, lines, said):
    text = tmp_path / "text.jsonl"
    text.write_text("\n".join(lines))
    recipe = test_branches.CONFIG.replace("text: {{", f"text: {{{{source: {text}, ")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_branches, "CONFIG", recipe)
        with pytest.raises(bad_input(), match=said.replace(".", r"\.")):
            searched.run()
    assert searched.world.opened == 0
