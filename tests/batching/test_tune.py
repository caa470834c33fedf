"""The batching stage's decisions, on a contest whose outcome is known: what is proposed, refused and kept, and why."""

import math
import random
from pathlib import Path

import pytest
from fake_rollout import INT8, measured

import tasks.batching.tune as tune
from configs.model import FolderSource, ModelSettings
from configs.quantize import QuantizeSettings
from configs.schema import BatchingSettings, Config, Goals
from tasks.models.checkpoint import Architecture
from tasks.quality.verdict import GateVerdict
from tasks.release.judging import Judgement
from tasks.release.workspace import Workspace
from tasks.store.artifact import Artifact, Manifest

SMOL = Architecture(
    model_type="llama", layers=30, hidden=576, intermediate=1536, heads=9, kv_heads=3, head_dim=64,
    vocabulary=49152, tied_embeddings=True, parameters=134_515_008, context_tokens=8192, dtype="F32",
)  # fmt: skip
BROKEN = math.inf


def contest_of(gains: dict[int, float], noise: float = 0.01):
    """A contest in which a setting's gain is known by its number of sequences; `BROKEN` does not run."""

    class KnownContest:
        def __init__(self, workspace, release, options):
            self.options, self.failed, self.draws = options, {}, random.Random(0)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def pairs(self, name, count):
            if gains[self.options[name].engine.scheduler.max_num_seqs] == BROKEN:
                self.failed[name] = "EngineError: no"
                return []
            return self.decisive_pairs(self.options[name], count)

        def decisive_pairs(self, candidate, count):
            gain = gains[candidate.engine.scheduler.max_num_seqs]
            return [math.log(gain) + self.draws.gauss(0, noise) for _ in range(count)]

    return KnownContest


@pytest.fixture
def stage(monkeypatch, store):
    """Runs the stage on a contest, everything around it known."""
    passed = Judgement(
        verdict="PASS", reason="every metric is within its margin", gate=GateVerdict(verdict="PASS", reason="", metrics=()),
        samples={},
    )  # fmt: skip
    monkeypatch.setattr(tune, "measure_candidate", lambda workspace, candidate: measured(90, 500, 130, 400))
    monkeypatch.setattr(tune, "judge_candidate", lambda *_: passed)
    monkeypatch.setattr(tune, "_policies", lambda *_: ())
    monkeypatch.setattr(tune, "policy_metrics", lambda *_: {})

    def run(gains, settings, noise=0.01, goals=None):
        monkeypatch.setattr(tune, "Contest", contest_of(gains, noise))
        candidates = [{"engine": "openvino", "weights": {"bits": 8}}]
        config = Config(
            name="tuned",
            model=ModelSettings(name="smol", source=FolderSource(kind="folder", path="models/smol")),
            quantize=QuantizeSettings.model_validate({"candidates": candidates}),
            goals=goals or Goals(),
        )
        source = Artifact(
            digest="a" * 64, folder=Path("none"), manifest=Manifest(kind="checkpoint", files=())
        )
        workspace = Workspace(config, store, source, SMOL, None, None, "", store.home)  # type: ignore[arg-type]
        return tune.tune_batching(workspace, BatchingSettings.model_validate(settings), INT8)

    return run


GRID = {"grid": {"max_num_seqs": [4, 8, 16], "max_num_batched_tokens": [256]}, "min_gain": 1.1}


def test_the_best_is_kept_where_its_whole_interval_is_above_the_factor(stage):
    result = stage({4: 0.8, 8: 1.3, 16: 1.2}, GRID)
    assert (result.verdict, result.kept) == ("PASS", True)
    assert result.proposal.engine.scheduler.max_num_seqs == 8
    assert result.metrics["perf/throughput_gain"] == pytest.approx(1.3, rel=0.02)
    assert result.metrics["perf/throughput_gain_ci_low"] > 1.1
    assert result.metrics["perf/search_cost_fraction"] <= 0.2
    assert sum(each.measurement is not None for each in result.candidates) == 1
    assert sum(each.dropped is not None for each in result.candidates) == 2
    assert "pairs" in result.text["search.csv"]


@pytest.mark.parametrize(
    ("gain", "noise", "verdict"),
    [(1.0, 0.01, "FAIL"), (1.1, 0.05, "INCONCLUSIVE"), (1.3, 0.6, "INCONCLUSIVE")],
)
def test_what_is_not_shown_to_be_faster_is_not_kept(stage, gain, noise, verdict):
    result = stage({4: gain, 8: gain, 16: gain}, GRID, noise)
    assert (result.verdict, result.kept) == (verdict, False)
    assert "more than 1.1 is asked" in result.reason
    assert result.gate is None


def test_a_setting_that_breaks_down_is_told_and_the_others_go_on(stage):
    result = stage({4: 1.5, 8: BROKEN, 16: 1.2}, GRID)
    assert result.proposal.engine.scheduler.max_num_seqs == 4
    assert [each.error for each in result.candidates] == [None, "EngineError: no", None]
    nothing = stage(dict.fromkeys((4, 8, 16), BROKEN), GRID)
    assert (nothing.verdict, nothing.kept, nothing.proposal) == ("ERROR", False, None)
    assert "EngineError: no" in nothing.reason


def test_a_cache_above_the_memory_goal_is_never_opened(stage):
    settings = {"grid": {"max_num_seqs": [4, 8], "max_num_batched_tokens": [256], "cache_mib": [256, 4096]}}
    result = stage({4: 1.5, 8: 1.4}, settings, goals=Goals(max_peak_mib=1500))
    assert result.proposal.engine.scheduler.cache_mib == 256
    refused = [each for each in result.candidates if each.candidate.engine.scheduler.cache_mib == 4096]
    assert len(refused) == 2
    assert all("goals.max_peak_mib is 1500" in each.dropped for each in refused)
    none = stage({4: 1.5, 8: 1.4}, settings, goals=Goals(max_peak_mib=100))
    assert (none.verdict, none.proposal) == ("FAIL", None)
    assert "goals.max_peak_mib" in none.reason


def test_a_prefix_cache_that_changes_answers_leaves_the_next_best(stage, monkeypatch):
    settings = {"schedulers": [{"max_num_seqs": 8, "prefix_caching": True}, {"max_num_seqs": 16}]}
    monkeypatch.setattr(
        tune, "_prefix_cache_changes",
        lambda workspace, best: "the prefix cache changed 3 of 12 answers" if best.engine.scheduler.prefix_caching else None,
    )  # fmt: skip
    result = stage({8: 1.5, 16: 1.2}, settings)
    assert result.proposal.engine.scheduler.max_num_seqs == 16
    assert result.kept
    assert result.candidates[0].dropped == "the prefix cache changed 3 of 12 answers"


def test_nothing_else_to_try(stage):
    own = INT8.engine.scheduler.model_dump()
    result = stage({}, {"schedulers": [own]})
    assert (result.verdict, result.proposal) == ("FAIL", None)
    assert "the release's own" in result.reason


def test_threads_are_the_engines_alone_and_tried_in_the_grid() -> None:
    grid = {"max_num_seqs": [8], "max_num_batched_tokens": [512], "threads": [None, 1]}
    options = tune.scheduler_options(INT8, BatchingSettings.model_validate({"grid": grid})).values()
    assert [(each.engine.own_threads, each.engine.threads) for each in options] == [(2, 2), (1, 2)]
    assert [each.name.endswith(", threads 1") for each in options] == [False, True]


def test_an_engine_on_the_threads_of_its_process_is_not_tried_with_others(stage, monkeypatch) -> None:
    engine = INT8.engine.model_copy(update={"engine": "transformers"})
    monkeypatch.setitem(globals(), "INT8", INT8.model_copy(update={"engine": engine}))
    schedulers = [{"max_num_seqs": 8}, {"max_num_seqs": 8, "threads": 1}]
    result = stage({8: 1.3}, {"schedulers": schedulers, "min_gain": 1.05})
    dropped = {
        each.candidate.engine.own_threads: each.dropped for each in result.candidates if each.candidate
    }
    assert "threads of its process" in dropped[1]
    assert result.proposal.engine.own_threads == 2
