"""The quantize stage: weight formats and KV-cache types screened, the survivors measured, the best one judged.

What is named as a candidate is screened in any case; a declared space is searched (`explore`).

Screening uses the search split, the verdict the gate split, once: the best of twenty would otherwise be flattered by the choice
(winner's curse). A candidate that cannot be built or run is recorded with its reason and does not end the search.
"""

import logging
import time

from configs.engine import EngineSettings
from configs.schema import QuantizeSettings
from configs.space import WeightCandidate
from tasks.compression.build_cost import build_cost, build_metrics
from tasks.compression.error import CompressionError
from tasks.engines.protocol import EngineError
from tasks.quality.quality_error import QualityError
from tasks.quantization.candidate_needs import candidate_name
from tasks.quantization.explore import explore, seconds_left
from tasks.quantization.options import served
from tasks.quantization.out_of_memory import memory_errors
from tasks.quantization.parity import check_export
from tasks.quantization.preflight import preflight, refusals
from tasks.quantization.reload import check_reloads
from tasks.quantization.sensitivity import sensitivities_of
from tasks.quantization.survivors import surviving, why_dropped
from tasks.release.candidate import Candidate, Measurement
from tasks.release.decision import choose, missed_goals
from tasks.release.greedy import continue_prompts
from tasks.release.judging import judge_candidate, screen_candidate
from tasks.release.measuring import make_candidate, measure_candidate
from tasks.release.stage_result import CandidateResult, StageResult
from tasks.release.workspace import Workspace

logger = logging.getLogger(__name__)

_FAILURES = (CompressionError, EngineError, QualityError, MemoryError)


def quantize(workspace: Workspace, settings: QuantizeSettings, baseline: Measurement) -> StageResult:
    """Try every candidate, judge the best.

    Raises:
        EngineError, QualityError, StoreError: the source could not be scored, or the verdict could not be reached.
    """
    results = _search(workspace, settings)
    chosen = choose(results, workspace.config.goals, workspace.config.quality.margins, baseline)
    if chosen is None or chosen.candidate is None:
        reasons = "; ".join(f"{result.name}: {result.error or result.dropped}" for result in results)
        return StageResult(
            stage="quantize",
            verdict="ERROR",
            kept=False,
            candidates=results,
            reason=f"no candidate could be built and measured ({reasons})",
        )
    judged = judge_candidate(workspace, chosen.candidate, "preserve")
    kept = judged.verdict == "PASS"
    missed = missed_goals(workspace.config.goals, chosen.measurement, baseline) if chosen.measurement else ()
    note = f"; misses {'; '.join(missed)}" if kept and missed else ""
    return StageResult(
        stage="quantize",
        verdict=judged.verdict,
        kept=kept,
        reason=f"{chosen.name}: {judged.reason}{note}",
        proposal=chosen.candidate,
        measurement=chosen.measurement,
        gate=judged.gate,
        candidates=results,
        samples=judged.samples,
        provisional=judged.provisional,
        metrics=judged.metrics,
        text=judged.text,
    )


def _search(workspace: Workspace, settings: QuantizeSettings) -> tuple[CandidateResult, ...]:
    """Every declared candidate: screened and reloaded, and measured where it survives."""
    began_s, predicted = time.monotonic(), preflight(workspace).candidates
    screened = _screen_all(workspace, settings)
    every = (
        _name(each, engine) for each in settings.candidates for engine in _engines(workspace, each, settings)
    )
    screened += explore(
        workspace,
        dict(zip(every, screened, strict=True)),
        predicted,
        _screen,
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


def _screen_all(workspace: Workspace, settings: QuantizeSettings) -> list[CandidateResult]:
    began_s, minutes = time.monotonic(), settings.budget_minutes
    refused = refusals(workspace)
    screened: list[CandidateResult] = []
    for declared in settings.candidates:
        for engine in _engines(workspace, declared, settings):
            name = _name(declared, engine)
            reason = refused.get(name)
            if minutes is not None and screened and time.monotonic() - began_s > 60 * minutes:
                reason = f"not tried: quantize.budget_minutes ({minutes:g}) was spent"
            if reason is not None:
                screened.append(CandidateResult(name=name, candidate=None, measurement=None, dropped=reason))
            else:
                screened.append(_screen(workspace, declared, engine))
    return screened


def _engines(
    workspace: Workspace, declared: WeightCandidate, settings: QuantizeSettings
) -> tuple[EngineSettings, ...]:
    return tuple(served(declared, settings, workspace.config.threads))


def _screen(workspace: Workspace, declared: WeightCandidate, engine: EngineSettings) -> CandidateResult:
    name = _name(declared, engine)
    candidate: Candidate | None = None
    try:
        with memory_errors():
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
            measured = measure_candidate(
                workspace, candidate, lambda engine: continue_prompts(workspace, candidate, engine)
            )
            parity = check_export(workspace, candidate)
    except _FAILURES as error:
        return _failed(result, error)
    return result.model_copy(update={"measurement": measured, "metrics": result.metrics | parity.metrics})


def _failed(result: CandidateResult, error: BaseException) -> CandidateResult:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    logger.warning("%s failed: %s", result.name, reason)
    return result.model_copy(update={"error": reason})


def _name(declared: WeightCandidate, engine: EngineSettings) -> str:
    return candidate_name(engine, declared.weights)
