"""Candidates that single measurements do not rank: which meet, who is judged first, and what one that fails costs."""

import pytest
from fake_rollout import BATCHED, INT4, INT8, SOURCE, measured, tried
from tiny_llama import tiny_llama

from configs.model import FolderSource, ModelSettings
from configs.schema import Config
from tasks.engines.protocol import EngineError
from tasks.quantization import run_off
from tasks.quantization.run_off import MOST, in_order, near_the_first
from tasks.release.in_pairs import Ratios
from tasks.release.metrics import candidate_metrics
from tasks.release.preparation import make_workspace
from tasks.release.stage_result import CandidateResult
from tasks.release.workspace import Workspace


def of_speed(candidate, mean: float, nats: float = 0.004, ratio: float | None = None) -> CandidateResult:
    update = {"measurement": measured(mean, mean, 130, 400), "pair_ratio": ratio}
    return tried(candidate, nats).model_copy(update=update)


def names(results) -> list[str]:
    return [each.name for each in results]


def test_what_a_disturbed_minute_may_explain_meets():
    ranked = [of_speed(INT8, 100), of_speed(BATCHED, 81), of_speed(INT4, 79)]
    assert names(near_the_first(ranked)) == [INT8.name, BATCHED.name]


def test_at_most_so_many_meet():
    assert len(near_the_first([of_speed(INT8, 100)] * (MOST + 3))) == MOST
    assert near_the_first([]) == ()


def test_the_pairs_rank():
    leader = of_speed(INT8, 100, ratio=1.0)
    assert names(in_order([leader, of_speed(BATCHED, 90, ratio=1.04)])) == [BATCHED.name, INT8.name]
    assert names(in_order([leader, of_speed(BATCHED, 99, ratio=0.96)])) == [INT8.name, BATCHED.name]


def test_of_equally_fast_ones_the_least_divergent_is_judged_first():
    leader, near = of_speed(INT8, 100, 0.012, ratio=1.0), of_speed(BATCHED, 99, 0.004, ratio=0.995)
    assert names(in_order([leader, near])) == [BATCHED.name, INT8.name]
    slower = of_speed(BATCHED, 99, 0.004, ratio=0.985)
    assert names(in_order([leader, slower])) == [INT8.name, BATCHED.name]


def test_who_did_not_meet_stands_where_the_own_measurement_puts_it():
    leader, fell = of_speed(INT8, 100, ratio=1.0), of_speed(BATCHED, 95, ratio=0.7)
    apart = of_speed(INT4, 79)
    assert names(in_order([leader, fell, apart])) == [INT8.name, INT4.name, BATCHED.name]
    flattered = of_speed(INT8, 100, ratio=1.0), of_speed(BATCHED, 95, ratio=1.3), apart
    assert names(in_order(flattered)) == [BATCHED.name, INT8.name, INT4.name]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root = tmp_path_factory.mktemp("run_off")
    tiny_llama(root / "model", layers=2)
    config = Config.model_validate(
        {
            "name": "run-off",
            "model": ModelSettings(name="tiny", source=FolderSource(kind="folder", path=str(root / "model"))),
            "quality": {
                "margins": {"accuracy": None},
                "text": {"section_characters": 200, "search_sections": 4},
                "tries": 1,
            },
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEIRYO_HOME", str(root / "store"))
        return make_workspace(config)


@pytest.fixture
def ranked(workspace: Workspace) -> tuple[CandidateResult, ...]:
    """Four by their own measurements; what they are served from is in the store, so that it is found whole."""
    candidates = (
        each.model_copy(update={"artifact": workspace.source.digest})
        for each in (INT8, BATCHED, SOURCE, INT4)
    )
    return tuple(
        of_speed(INT8, 1).model_copy(
            update={
                "name": each.name,
                "candidate": each,
                "measurement": measured(speed, speed, 130, 400),
            }
        )
        for each, speed in zip(candidates, (100, 98, 96, 50), strict=True)
    )


def test_those_near_the_first_meet_it_once(workspace, ranked, monkeypatch):
    asked = []

    def ratios(store, pair):
        asked.append((pair.present.engine, pair.proposed.engine, pair.blocks))
        faster = pair.proposed.engine == BATCHED.engine
        return Ratios(ratios=(0.9, 1.1, 1.06) if faster else (0.7, 0.8, 0.2))

    monkeypatch.setattr(run_off, "ratios_in_pairs", ratios)
    found = run_off.run_off(workspace, ranked)
    blocks = 2 * workspace.config.requests.repeats
    assert asked == [(INT8.engine, BATCHED.engine, blocks), (INT8.engine, SOURCE.engine, blocks)]
    assert names(found) == [BATCHED.name, INT8.name, SOURCE.name, INT4.name]
    assert [each.pair_ratio for each in found] == [1.06, 1.0, 0.7, None]
    assert candidate_metrics(found[0])["perf/pair_ratio"] == 1.06
    assert "perf/pair_ratio" not in candidate_metrics(found[3])
    assert run_off.run_off(workspace, ranked) == found
    assert len(asked) == 2


def test_one_that_fails_keeps_its_place_says_why_and_is_asked_again(workspace, ranked, monkeypatch):
    def ratios(store, pair):
        if pair.proposed.engine == BATCHED.engine:
            raise EngineError("there is no room\nfor two")
        return Ratios(ratios=(0.97,))

    monkeypatch.setattr(run_off, "ratios_in_pairs", ratios)
    monkeypatch.setattr(run_off, "_BLOCKS_A_REPEAT", 1)  # other keys than the test before
    found = run_off.run_off(workspace, ranked)
    assert names(found) == names(ranked)  # 1, its own 0.98, 0.97
    assert found[1].pair_ratio is None
    assert found[1].unpaired == f"not measured beside {INT8.name}: there is no room for two"
    monkeypatch.setattr(run_off, "ratios_in_pairs", lambda *_: Ratios(ratios=(1.2,)))
    assert names(run_off.run_off(workspace, ranked))[0] == BATCHED.name
