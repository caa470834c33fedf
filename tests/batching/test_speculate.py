"""Speculation tried and chosen: on an engine whose acceptance and costs are known, and at the end of the stage."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from speculating_engine import STEP_S, SpeculatingEngine

from configs.engine import EngineSettings
from configs.schema import BatchingSettings, RequestSettings
from configs.speculation import DraftModel, PromptLookup, SpeculationSearch
from tasks.batching import speculate, speculative_stage
from tasks.batching.lossless import Losslessness
from tasks.batching.speculate import SpeculationTrial, speculating, try_speculation
from tasks.batching.speculation import best_block
from tasks.batching.speculation import speculate as closed_form
from tasks.batching.speculative_stage import trial_metrics, with_speculation
from tasks.engines.protocol import EngineUnavailable
from tasks.release.candidate import Candidate
from tasks.release.stage_result import StageResult

DRAFT = "d" * 64
BASE = Candidate(name="base", artifact="a" * 64, engine=EngineSettings(engine="openvino"), weights="f32")
REQUESTS = RequestSettings(count=8, prompt_tokens=4, min_new_tokens=400, max_new_tokens=400, repeats=1)
SEARCH = SpeculationSearch(prompt_lookup=PromptLookup(), draft=None)
TUNED = StageResult(stage="batching", verdict="FAIL", kept=False, reason="the quickest is the release")


def workspace() -> Any:
    config = SimpleNamespace(requests=REQUESTS, ledger=SimpleNamespace(confidence=0.95))
    return SimpleNamespace(config=config, store=None)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Engines that accept with a chance of 0.75; a drafted token costs 0.1 of a step, and the draft alone 0.06."""
    known = SimpleNamespace(acceptance=0.75, cost=0.1, round_cost=0.0, opened=[])

    def opened(_: Any, candidate: Candidate, *, chunk_tokens: int | None = None) -> SpeculatingEngine:
        known.opened.append(candidate)
        step_s = STEP_S * 0.06 if candidate.artifact == DRAFT else STEP_S
        return SpeculatingEngine(
            candidate.engine,
            acceptance=known.acceptance,
            drafted_cost=known.cost,
            round_cost=known.round_cost,
            step_s=step_s,
        )

    monkeypatch.setattr(speculate, "quiet", lambda store: nullcontext())
    monkeypatch.setattr(speculate, "open_candidate", opened)
    monkeypatch.setattr(speculate, "prompt_tokens", lambda _: list(range(60)))
    return known


def test_block_is_chosen_from_what_was_measured_and_the_prediction_holds(world: Any) -> None:
    trial = try_speculation(workspace(), BASE, PromptLookup(block_tokens=4), SEARCH, 0.95)
    assert trial.probe.block == 4
    assert trial.probe.acceptance == pytest.approx(0.75, abs=0.03)
    assert trial.predicted.draft_cost == pytest.approx(0.1, abs=1e-6)
    assert trial.predicted.round_cost == pytest.approx(0, abs=1e-6)
    expected = best_block(trial.probe.acceptance, trial.predicted.draft_cost)
    assert trial.served.block == expected.block == trial.predicted.block
    assert trial.candidate.engine.speculation == PromptLookup(block_tokens=expected.block)
    assert trial.served.tokens_per_round == pytest.approx(trial.predicted.tokens_per_round, rel=0.06)
    # The list ends with its slowest request, so a little less than predicted is measured.
    assert trial.speedup == pytest.approx(trial.predicted.speedup, rel=0.1)
    assert trial.draft_step_cost == 0
    assert trial.published.speedup > trial.predicted.speedup  # as published, checking a block is free
    assert trial.lossless == Losslessness(identical=8, tied=0, different=0)
    assert trial.wins(1.0)
    assert not trial.wins(3.0)


def test_the_draft_is_timed_alone_and_its_artifact_is_opened(world: Any) -> None:
    trial = try_speculation(workspace(), BASE, DraftModel(draft=DRAFT, block_tokens=2), SEARCH, 0.95)
    assert trial.draft_step_cost == pytest.approx(0.06)
    assert trial.candidate.artifacts == (BASE.artifact, DRAFT)
    alone = [each for each in world.opened if each.artifact == DRAFT]
    assert [each.engine.speculation for each in alone] == [None]


def test_what_a_round_costs_besides_its_tokens_is_told_apart(world: Any) -> None:
    """A drafted token 0.1 of a step, a round 0.4: through one probe at block 4 the first would have been called 0.2."""
    world.round_cost = 0.4
    trial = try_speculation(workspace(), BASE, PromptLookup(block_tokens=4), SEARCH, 0.95)
    assert trial.predicted.draft_cost == pytest.approx(0.1, abs=1e-6)
    assert trial.predicted.round_cost == pytest.approx(0.4, abs=1e-6)
    assert trial.speedup == pytest.approx(trial.predicted.speedup, rel=0.1)
    assert trial_metrics(trial)["perf/speculation_prompt_lookup/round_cost"] == pytest.approx(0.4, abs=1e-6)


def test_drafting_that_costs_more_than_it_brings_is_measured_at_the_shortest_block(world: Any) -> None:
    world.acceptance, world.cost = 0.2, 0.5
    trial = try_speculation(workspace(), BASE, PromptLookup(), SEARCH, 0.95)
    assert trial.served.block == 1
    assert trial.predicted.speedup < 1
    assert trial.speedup < 1
    assert not trial.wins(1.0)
    metrics = trial_metrics(trial)
    where = "perf/speculation_prompt_lookup"
    error = metrics[f"{where}/speedup_predicted"] / metrics[f"{where}/speedup"] - 1
    assert metrics[f"{where}/speedup_predicted_error_fraction"] == pytest.approx(error)


@pytest.mark.parametrize(("acceptance", "cost"), [(0.2, 0.5), (0.5, 0.5), (0.0, 0.1)])
def test_where_no_block_pays_the_shortest_loses_least(acceptance: float, cost: float) -> None:
    losing = best_block(acceptance, cost)
    assert losing.block == 1
    assert not losing.pays
    assert losing.speedup == max(closed_form(block, acceptance, cost).speedup for block in range(1, 17))


def trial(name: str, speedup: float, half: float = 0.02, different: int = 0) -> SpeculationTrial:
    from tasks.batching.rounds import Rounds

    rounds = Rounds(block=4, rounds=100, tokens=250, accepted=150, refusals=60)
    drafting = PromptLookup() if name == "prompt" else DraftModel(draft=DRAFT, block_tokens=4)
    return SpeculationTrial(
        candidate=speculating(BASE, drafting), probe=rounds, served=rounds, draft_step_cost=0.1,
        predicted=closed_form(4, 0.7, 0.2), published=closed_form(4, 0.7, 0.1), speedup=speedup,
        ci_low=speedup - half, ci_high=speedup + half,
        lossless=Losslessness(identical=8 - different, tied=0, different=different),
    )  # fmt: skip


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The end of the stage with given trials; what is judged passes unless told otherwise."""
    known = SimpleNamespace(trials=[], verdict="PASS", judged=[])

    def judged(_: Any, candidate: Candidate, kind: str) -> Any:
        known.judged.append(candidate.name)
        return SimpleNamespace(
            verdict=known.verdict, reason="all within", gate=None, samples={}, metrics={}, text={}, provisional=False
        )  # fmt: skip

    def tried(*_: Any) -> SpeculationTrial:
        found = known.trials.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(speculative_stage, "try_speculation", tried)
    monkeypatch.setattr(speculative_stage, "measure_candidate", lambda *_: None)
    monkeypatch.setattr(speculative_stage, "judge_candidate", judged)
    ways = {"prompt lookup": lambda: PromptLookup(), "draft model": lambda: None}
    monkeypatch.setattr(speculative_stage, "_ways", lambda *_: ways)

    def run(
        *trials: Any, tuned: StageResult = TUNED, base: Candidate = BASE, min_gain: float = 1.0
    ) -> StageResult:
        known.trials = list(trials)
        settings = BatchingSettings.model_validate(
            {"schedulers": [{}], "min_gain": min_gain, "speculation": SEARCH.model_dump()}
        )
        return with_speculation(workspace(), settings, base, tuned)

    known.run = run
    return known


def test_the_surest_winner_is_judged_and_proposed(stage: Any) -> None:
    result = stage.run(trial("prompt", 1.2), trial("draft", 1.4))
    assert (result.verdict, result.kept) == ("PASS", True)
    assert result.proposal.draft == DRAFT
    assert stage.judged == [result.proposal.name]
    assert result.metrics["perf/speculation_on"] == 1
    assert result.metrics["perf/speculation_prompt_lookup/speedup"] == pytest.approx(1.2)
    assert "speculation on" in result.reason
    assert result.text["speculation.csv"].splitlines()[1].startswith("acceptance,")


def test_it_stays_off_where_the_interval_holds_1_and_the_reason_says_so(stage: Any) -> None:
    result = stage.run(trial("prompt", 1.01), trial("draft", 0.7))
    assert (result.verdict, result.kept, result.proposal) == ("FAIL", False, None)
    assert result.metrics["perf/speculation_on"] == 0
    assert "not surely above 1x" in result.reason
    assert "0.700x plain decoding" in result.reason
    assert stage.judged == []
    assert len(result.candidates) == 2


def test_what_is_not_lossless_is_never_proposed_however_fast(stage: Any) -> None:
    result = stage.run(trial("prompt", 3.0, different=1), trial("draft", 0.7))
    assert result.metrics["perf/speculation_on"] == 0
    assert "not lossless" in result.reason
    assert stage.judged == []


def test_alone_it_must_exceed_the_gain_that_the_stage_asks_for(stage: Any) -> None:
    assert not stage.run(trial("prompt", 1.2), trial("draft", 0.7), min_gain=1.25).kept
    tuned = TUNED.model_copy(update={"verdict": "PASS", "kept": True, "proposal": BASE})
    # The tuner's proposal has the gain already; speculation on top of it must win, no more.
    result = stage.run(trial("prompt", 1.2), trial("draft", 0.7), tuned=tuned, min_gain=1.25)
    assert result.metrics["perf/speculation_on"] == 1


def test_a_winner_that_fails_the_gate_leaves_the_proposal_as_it_was(stage: Any) -> None:
    stage.verdict = "FAIL"
    tuned = TUNED.model_copy(update={"verdict": "PASS", "kept": True, "proposal": BASE})
    result = stage.run(trial("prompt", 1.5), trial("draft", 0.7), tuned=tuned)
    assert (result.verdict, result.kept, result.proposal) == ("PASS", True, BASE)
    assert result.metrics["perf/speculation_on"] == 0
    assert "FAIL" in result.reason


def test_a_way_that_breaks_is_told_and_the_other_one_goes_on(stage: Any) -> None:
    result = stage.run(EngineUnavailable("the draft has another tokenizer"), trial("draft", 1.3))
    assert result.kept
    assert [bool(each.error) for each in result.candidates] == [True, False]


def test_an_engine_that_cannot_says_why(stage: Any) -> None:
    base = BASE.model_copy(update={"engine": EngineSettings(engine="onnxruntime")})
    result = stage.run(base=base)
    assert "max_draft_tokens_per_proposal 0" in result.reason
    assert result.metrics == {"perf/speculation_on": 0.0}
