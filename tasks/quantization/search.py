"""The quantize stage: every declared weight format and KV-cache type, measured and screened; the best one judged.

Screening uses the search split, the verdict the gate split, once: the best of twenty would otherwise be flattered by the choice
(winner's curse). A candidate that cannot be built or run is recorded with its reason and does not end the search.
"""

import logging

from configs.engine import EngineSettings
from configs.schema import QuantizeSettings, WeightCandidate
from tasks.compression.error import CompressionError
from tasks.engines.protocol import EngineError
from tasks.quality.quality_error import QualityError
from tasks.release.candidate import Candidate, Measurement
from tasks.release.decision import choose, missed_goals
from tasks.release.judging import judge_candidate, screen_candidate
from tasks.release.measuring import make_candidate, measure_candidate
from tasks.release.stage_result import CandidateResult, StageResult
from tasks.release.workspace import Workspace

logger = logging.getLogger(__name__)


def quantize(workspace: Workspace, settings: QuantizeSettings, baseline: Measurement) -> StageResult:
    """Try every candidate, judge the best.

    Raises:
        EngineError, QualityError, StoreError: the source could not be scored, or the verdict could not be reached.
    """
    results = tuple(
        _try(workspace, declared, engine)
        for declared in settings.candidates
        for engine in _engines(workspace, declared, settings)
    )
    chosen = choose(results, workspace.config.goals, workspace.config.quality.margins, baseline)
    if chosen is None or chosen.candidate is None:
        reasons = "; ".join(f"{result.name}: {result.error}" for result in results)
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


def _engines(
    workspace: Workspace, declared: WeightCandidate, settings: QuantizeSettings
) -> tuple[EngineSettings, ...]:
    return tuple(
        EngineSettings(
            engine=declared.engine,
            compute=declared.compute,
            kv_cache=kv_cache,
            activation_group=declared.activation_group,
            threads=workspace.config.threads,
            scheduler=settings.scheduler,
        )
        for kv_cache in declared.kv_cache
    )


def _try(workspace: Workspace, declared: WeightCandidate, engine: EngineSettings) -> CandidateResult:
    name = f"{engine.engine} {declared.weights.label}, {engine.kv_cache} cache"
    candidate: Candidate | None = None
    try:
        candidate = make_candidate(workspace, workspace.source, engine, declared.weights)
        measurement = measure_candidate(workspace, candidate)
        screen = screen_candidate(workspace, candidate)
    except (CompressionError, EngineError, QualityError, MemoryError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        logger.warning("%s failed: %s", name, reason)
        return CandidateResult(name=name, candidate=candidate, measurement=None, error=reason)
    return CandidateResult(name=name, candidate=candidate, measurement=measurement, screen=screen)
