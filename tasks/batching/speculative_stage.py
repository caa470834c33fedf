"""The end of the batching stage: speculation on what the tuner keeps, turned on only where it wins."""

from collections.abc import Callable

from configs.schema import BatchingSettings
from configs.speculation import WITHOUT_SPECULATION, DraftModel, PromptLookup, SpeculationSearch
from tasks.batching.draft_model import draft_artifact, draft_checkpoint, find_student
from tasks.batching.speculate import SpeculationTrial, try_speculation
from tasks.compression.error import CompressionError
from tasks.engines.protocol import EngineError
from tasks.profiling.memory_budget import relative_error
from tasks.release.candidate import Candidate
from tasks.release.draft_memory import checkpoint_of
from tasks.release.judging import judge_candidate
from tasks.release.measuring import measure_candidate
from tasks.release.stage_result import CandidateResult, StageResult
from tasks.release.workspace import Workspace
from tasks.training.error import TrainingError

Drafting = PromptLookup | DraftModel


def with_speculation(
    workspace: Workspace, settings: BatchingSettings, release: Candidate, tuned: StageResult
) -> StageResult:
    """Try the configured ways of speculation on the tuner's proposal where it was kept, else on the release.

    Args:
        workspace: of the rollout.
        settings: of the stage.
        release: the candidate before the stage.
        tuned: what the tuner said.

    Returns:
        `tuned`, with the figures; its proposal speculates where that is lossless, surely faster and passes the gate.

    Raises:
        EngineError, QualityError, StoreError: the winner could not be measured or judged.
    """
    search = settings.speculation
    if search is None or tuned.verdict == "ERROR":
        return tuned
    base = tuned.proposal if tuned.kept and tuned.proposal is not None else release
    if (refused := WITHOUT_SPECULATION.get(base.engine.engine)) is not None:
        return _off(tuned, f"{base.engine.engine} does not speculate: {refused}")
    needed = 1.0 if tuned.kept else settings.min_gain
    trials, results = _try_all(workspace, base, search, needed)
    tuned = tuned.model_copy(
        update={
            "candidates": (*tuned.candidates, *results),
            "metrics": tuned.metrics
            | {name: value for trial in trials for name, value in trial_metrics(trial).items()},
            "text": tuned.text | {"speculation.csv": trials_csv(trials)},
        }
    )
    said = "; ".join(f"{result.name}: {result.error or result.dropped or 'wins'}" for result in results)
    winners = [trial for trial in trials if trial.wins(needed)]
    if not winners:
        return _off(tuned, said)
    return _on(workspace, tuned, max(winners, key=lambda trial: trial.ci_low))


def speculation_inputs(
    workspace: Workspace, settings: BatchingSettings, release: Candidate
) -> tuple[str | float, ...]:
    """What the result depends on besides the settings: the interval's level, and the student that the store has by now."""
    search = settings.speculation
    if search is None:
        return ()
    level = workspace.config.ledger.confidence
    if search.draft is None or search.draft.source != "student":
        return (level,)
    target = checkpoint_of(workspace.store, workspace.store.open(release.artifact))
    student = find_student(workspace.store, target)
    return (level,) if student is None else (level, student.digest)


def trial_metrics(trial: SpeculationTrial) -> dict[str, float]:
    """A trial under the names of the MLflow contract; what is predicted stands beside what was measured."""
    drafting = trial.candidate.engine.speculation
    where = f"perf/speculation_{drafting.kind if drafting else 'off'}"
    figures = {
        "acceptance": trial.probe.acceptance,
        "block_tokens": trial.served.block,
        "tokens_per_round": trial.served.tokens_per_round,
        "tokens_per_round_predicted": trial.predicted.tokens_per_round,
        "tokens_per_round_naive": trial.predicted.naive_tokens_per_round,
        "drafted_token_cost": trial.predicted.draft_cost,
        "round_cost": trial.predicted.round_cost,
        "draft_step_cost": trial.draft_step_cost,
        "speedup": trial.speedup,
        "speedup_ci_low": trial.ci_low,
        "speedup_ci_high": trial.ci_high,
        "speedup_predicted": trial.predicted.speedup,
        "speedup_predicted_error_fraction": relative_error(trial.predicted.speedup, trial.speedup),
        "speedup_published": trial.published.speedup,
        "speedup_naive": trial.published.naive_speedup,
        "requests_identical": trial.lossless.identical,
        "requests_tied": trial.lossless.tied,
        "requests_different": trial.lossless.different,
        "tie_tolerance_nats": trial.lossless.tolerance_nats,
    }
    return {f"{where}/{name}": float(value) for name, value in figures.items()}


def trials_csv(trials: list[SpeculationTrial]) -> str:
    """One line a figure, one column a trial."""
    columns = [list(trial_metrics(trial).items()) for trial in trials]
    lines = [",".join(["figure", *(trial.candidate.name.replace(",", ";") for trial in trials)])]
    for rows in zip(*columns, strict=True):
        name = rows[0][0].rpartition("/")[2]
        lines.append(",".join([name, *(f"{value:.6g}" for _, value in rows)]))
    return "\n".join([*lines, ""])


def _try_all(
    workspace: Workspace, base: Candidate, search: SpeculationSearch, needed: float
) -> tuple[list[SpeculationTrial], list[CandidateResult]]:
    """What was measured, and what the stage says of every way; one that breaks does not end the others."""
    trials: list[SpeculationTrial] = []
    results: list[CandidateResult] = []
    ways = _ways(workspace, base, search)
    # Each way is a try: the interval of the one that is taken shall hold over all of them.
    confidence = 1 - (1 - workspace.config.ledger.confidence) / len(ways)
    for name, drafting in ways.items():
        try:
            trial = try_speculation(workspace, base, drafting(), search, confidence)
        except (CompressionError, EngineError, TrainingError, MemoryError) as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            results.append(
                CandidateResult(name=f"{base.name}, {name}", candidate=None, measurement=None, error=reason)
            )
            continue
        trials.append(trial)
        results.append(_result(trial, needed))
    return trials, results


def _ways(
    workspace: Workspace, base: Candidate, search: SpeculationSearch
) -> dict[str, Callable[[], Drafting]]:
    ways: dict[str, Callable[[], Drafting]] = {}
    if (lookup := search.prompt_lookup) is not None:
        ways["prompt lookup"] = lambda: lookup
    if (draft := search.draft) is not None:

        def with_draft() -> DraftModel:
            target = workspace.store.open(base.artifact)
            checkpoint = draft_checkpoint(workspace.store, checkpoint_of(workspace.store, target), draft)
            artifact = draft_artifact(workspace.store, checkpoint, target, draft)
            return DraftModel(draft=artifact.digest, block_tokens=draft.probe_block_tokens)

        ways["draft model"] = with_draft
    return ways


def _result(trial: SpeculationTrial, needed: float) -> CandidateResult:
    dropped = None
    if not trial.wins(needed):
        lost = (
            "not lossless" if not trial.lossless.lossless else f"not surely above {needed:g}x plain decoding"
        )
        dropped = f"{lost}: {trial.findings}"
    return CandidateResult(
        name=trial.candidate.name, candidate=trial.candidate, measurement=None, dropped=dropped
    )


def _off(tuned: StageResult, why: str) -> StageResult:
    return tuned.model_copy(
        update={
            "reason": f"{tuned.reason}; speculation off: {why}",
            "metrics": tuned.metrics | {"perf/speculation_on": 0.0},
        }
    )


def _on(workspace: Workspace, tuned: StageResult, trial: SpeculationTrial) -> StageResult:
    """Measured and judged like any proposal: the answers that it generates pass the same gate."""
    measurement = measure_candidate(workspace, trial.candidate)
    judged = judge_candidate(workspace, trial.candidate, "preserve")
    if judged.verdict != "PASS":
        off = _off(tuned, f"{trial.candidate.name}: {judged.verdict}: {judged.reason}")
        return off.model_copy(update={"provisional": tuned.provisional or judged.provisional})
    return tuned.model_copy(
        update={
            "verdict": "PASS", "kept": True, "proposal": trial.candidate, "measurement": measurement, "gate": judged.gate,
            "samples": judged.samples, "provisional": judged.provisional, "text": tuned.text | judged.text,
            "metrics": tuned.metrics | judged.metrics | {"perf/speculation_on": 1.0},
            "reason": f"{tuned.reason}; speculation on, {trial.candidate.name}: {trial.findings}; {judged.reason}",
        }
    )  # fmt: skip
