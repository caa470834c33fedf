"""The quantize stage: weight formats and KV-cache types screened, the survivors measured, the best one judged.

What is named as a candidate is screened in any case; a declared space is searched (`explore`).

Screening uses the search split, the verdict the gate split: the best of twenty would otherwise be flattered by the choice
(winner's curse). Where the best does not pass, the next best is judged, as often as `quantize.tries` declares and
`quality.tries` pays for. A candidate that cannot be built or run is recorded with its reason and does not end the search.
"""

import logging
import time

from configs.engine import EngineSettings
from configs.quantize import QuantizeSettings
from configs.space import WeightCandidate
from tasks.compression.build_cost import build_cost, build_metrics
from tasks.compression.error import CompressionError
from tasks.engines.protocol import EngineError
from tasks.quality.quality_error import QualityError
from tasks.quantization.candidate_needs import candidate_name
from tasks.quantization.explore import explore, seconds_left
from tasks.quantization.fan_out import ScreenMap, budget_spent, side_by_side
from tasks.quantization.long_context import at_long_context, long_context_csv, long_context_metrics
from tasks.quantization.options import served
from tasks.quantization.out_of_memory import memory_errors
from tasks.quantization.parity import check_export
from tasks.quantization.preflight import preflight, refusals
from tasks.quantization.reload import check_reloads
from tasks.quantization.run_off import run_off
from tasks.quantization.sensitivity import sensitivities_of
from tasks.quantization.survivors import surviving, why_dropped
from tasks.release.candidate import Candidate, Measurement
from tasks.release.decision import missed_goals, worth_judging
from tasks.release.judging import Judgement, judge_candidate, screen_candidate
from tasks.release.measuring import make_candidate, measure_candidate
from tasks.release.quiet import at_work
from tasks.release.stage_result import CandidateResult, StageResult
from tasks.release.workspace import Workspace

logger = logging.getLogger(__name__)

_FAILURES = (CompressionError, EngineError, QualityError, MemoryError)


def quantize(
    workspace: Workspace,
    settings: QuantizeSettings,
    baseline: Measurement,
    screen_map: ScreenMap | None = None,
) -> StageResult:
    """Try every candidate, judge the best; where it does not pass, the next best, as often as is declared.

    Args:
        workspace: of the rollout.
        settings: the declared candidates.
        baseline: the source's measurement, which speed-ups refer to.
        screen_map: builds and screens candidates side by side; None: one after another, in this process.

    Raises:
        EngineError, QualityError, StoreError: the source could not be scored, or the verdict could not be reached.
    """
    results = _search(workspace, settings, screen_map)
    goals = workspace.config.goals
    ranked = worth_judging(results, goals, workspace.config.quality.margins, baseline)
    if not ranked:
        reasons = "; ".join(f"{result.name}: {result.error or result.dropped}" for result in results)
        return StageResult(
            stage="quantize",
            verdict="ERROR",
            kept=False,
            candidates=results,
            reason=f"no candidate could be built and measured ({reasons})",
        )
    ranked = run_off(workspace, ranked)
    compared = {each.name: each for each in ranked}
    results = tuple(compared.get(each.name, each) for each in results)
    judged = _judge_in_turn(workspace, ranked[: settings.tries])
    chosen, judgement = judged[-1] if judged[-1][1].verdict == "PASS" else _least_bad(judged)
    kept = judgement.verdict == "PASS"
    missed = missed_goals(goals, chosen.measurement, baseline) if chosen.measurement else ()
    note = f"; misses {'; '.join(missed)}" if kept and missed else ""
    others = "".join(
        f"; before it {each.name}: {said.verdict}" for each, said in judged if each is not chosen
    )
    return StageResult(
        stage="quantize",
        verdict=judgement.verdict,
        kept=kept,
        reason=f"{chosen.name}: {judgement.reason}{note}{others if kept else ''}",
        proposal=chosen.candidate,
        measurement=chosen.measurement,
        gate=judgement.gate,
        candidates=_with_verdicts(results, judged),
        samples=judgement.samples,
        provisional=judgement.provisional or any(each.unpaired for each in results),
        metrics=judgement.metrics,
        text=judgement.text | _long_context_table(workspace, results),
    )


def _judge_in_turn(
    workspace: Workspace, ranked: tuple[CandidateResult, ...]
) -> list[tuple[CandidateResult, Judgement]]:
    """Judge one after another until one passes; every one of them is a try on the gate items."""
    judged: list[tuple[CandidateResult, Judgement]] = []
    for result in ranked:
        if result.candidate is None:
            raise ValueError(f"{result.name} was never built")
        judged.append((result, judge_candidate(workspace, result.candidate, "preserve")))
        if judged[-1][1].verdict == "PASS":
            break
    return judged


def _least_bad(judged: list[tuple[CandidateResult, Judgement]]) -> tuple[CandidateResult, Judgement]:
    """The first that was not proven worse, or the first."""
    return next((each for each in judged if each[1].verdict != "FAIL"), judged[0])


def _with_verdicts(
    results: tuple[CandidateResult, ...], judged: list[tuple[CandidateResult, Judgement]]
) -> tuple[CandidateResult, ...]:
    said = {each.name: judgement for each, judgement in judged}
    return tuple(
        each.model_copy(update={"judged": said[each.name].verdict, "reason": said[each.name].reason})
        if each.name in said
        else each
        for each in results
    )


def _search(
    workspace: Workspace, settings: QuantizeSettings, screen_map: ScreenMap | None
) -> tuple[CandidateResult, ...]:
    """Every declared candidate: screened and reloaded, and measured where it survives."""
    began_s, predicted = time.monotonic(), preflight(workspace).candidates
    screened = _screen_all(workspace, settings, screen_map)
    every = (
        _name(each, engine) for each in settings.candidates for engine in _engines(workspace, each, settings)
    )
    screened += explore(
        workspace,
        dict(zip(every, screened, strict=True)),
        predicted,
        screen_one,
        _FAILURES,
        lambda: seconds_left(began_s, settings.budget_minutes),
    )
    sound = [each.candidate for each in screened if each.candidate is not None and each.screen]
    failed = check_reloads(workspace, sound)
    margins, adapt = workspace.config.quality.margins, workspace.config.adapt
    # Recovery starts from what is small and fast but not good enough: it needs those measured, too.
    recovers = adapt is not None and adapt.recovery is not None
    results = [
        each
        if each.candidate is None or each.candidate.artifact not in failed
        else each.model_copy(update={"error": failed[each.candidate.artifact]})
        for each in screened
    ]
    kept = {each.name for each in results} if recovers else surviving(results, margins)
    return tuple(
        each
        if each.error is not None or each.dropped is not None
        else _measure(workspace, each)
        if each.name in kept
        else each.model_copy(update={"dropped": why_dropped(each, margins)})
        for each in results
    )


def _screen_all(
    workspace: Workspace, settings: QuantizeSettings, screen_map: ScreenMap | None
) -> list[CandidateResult]:
    began_s, minutes = time.monotonic(), settings.budget_minutes
    refused = refusals(workspace)
    if screen_map is not None:
        every = [
            (each, engine) for each in settings.candidates for engine in _engines(workspace, each, settings)
        ]
        return side_by_side(workspace, every, refused, screen_map)
    screened: list[CandidateResult] = []
    for declared in settings.candidates:
        for engine in _engines(workspace, declared, settings):
            name = _name(declared, engine)
            reason = refused.get(name)
            if minutes is not None and screened and time.monotonic() - began_s > 60 * minutes:
                reason = budget_spent(minutes)
            if reason is not None:
                screened.append(CandidateResult(name=name, candidate=None, measurement=None, dropped=reason))
            else:
                screened.append(screen_one(workspace, declared, engine))
    return screened


def _engines(
    workspace: Workspace, declared: WeightCandidate, settings: QuantizeSettings
) -> tuple[EngineSettings, ...]:
    return tuple(served(declared, settings, workspace.config.threads))


def screen_one(workspace: Workspace, declared: WeightCandidate, engine: EngineSettings) -> CandidateResult:
    """Build and screen one candidate; what goes wrong is its error.

    Raises:
        StoreError: the store is damaged or full.
    """
    name = _name(declared, engine)
    candidate: Candidate | None = None
    try:
        with at_work(workspace.store), memory_errors():
            candidate = make_candidate(workspace, workspace.source, engine, declared.weights)
            screen = screen_candidate(workspace, candidate)
    except _FAILURES as error:
        return _failed(CandidateResult(name=name, candidate=candidate, measurement=None), error)
    return CandidateResult(
        name=candidate.name,
        candidate=candidate,
        measurement=None,
        screen=screen,
        metrics=build_metrics(build_cost(workspace.store, candidate.artifact)),
        sensitivity=sensitivities_of(workspace, engine, declared.weights),
    )


def _measure(workspace: Workspace, result: CandidateResult) -> CandidateResult:
    candidate = result.candidate
    if candidate is None:
        raise ValueError(f"{result.name} was never built")
    try:
        with memory_errors():
            measured = measure_candidate(workspace, candidate, with_continuations=True)
            parity = check_export(workspace, candidate)
            long = at_long_context(workspace, candidate)
    except _FAILURES as error:
        return _failed(result, error)
    metrics = result.metrics | parity.metrics | long_context_metrics(long)
    return result.model_copy(update={"measurement": measured, "metrics": metrics})


def _long_context_table(workspace: Workspace, results: tuple[CandidateResult, ...]) -> dict[str, str]:
    """The cache types of every measured candidate side by side; nothing where no length is configured."""
    rows = [
        (each.candidate, row)
        for each in results
        if each.candidate is not None and each.measurement is not None
        for row in at_long_context(workspace, each.candidate)
    ]
    return {"long_context.csv": long_context_csv(rows)} if rows else {}


def _failed(result: CandidateResult, error: BaseException) -> CandidateResult:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    logger.warning("%s failed: %s", result.name, reason)
    return result.model_copy(update={"error": reason})


def _name(declared: WeightCandidate, engine: EngineSettings) -> str:
    return candidate_name(engine, declared.weights)
