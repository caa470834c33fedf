"""The closing measurement: every kept stage's candidate once more, interleaved on one machine, and what follows from it.

Figures of different minutes do not compare on a busy machine; these do, and only they decide the speed goals.
"""

import logging
import math
from collections.abc import Sequence
from contextlib import ExitStack

from configs.schema import Goals
from tasks.release.candidate import Measurement
from tasks.release.decision import missed_goals
from tasks.release.ledger import (
    SOURCE_QUALITY,
    Ledger,
    LedgerPoint,
    QualityLevel,
    build_ledger,
    quality_level,
)
from tasks.release.machine import machine_digest
from tasks.release.measuring import open_candidate, prompt_tokens
from tasks.release.quiet import quiet
from tasks.release.stage_result import StageResult
from tasks.release.workspace import Workspace
from tasks.serving.interleaved import decode_runner, interleave, throughput_runner
from tasks.serving.latency import warm_up
from tasks.store.digest import code_digest, digest_of

logger = logging.getLogger(__name__)


def close_ledger(workspace: Workspace, kept: Sequence[StageResult]) -> tuple[Ledger, bool]:
    """Measure the chain of kept stages, the source first; remembered under the chain.

    Args:
        workspace: of the rollout.
        kept: kept stages in order; the first is the profile, whose proposal is the source on the baseline engine.

    Returns:
        The ledger, and whether it was found in the store.

    Raises:
        EngineError: a candidate does not work any more.
    """
    config = workspace.config
    parts = [
        [[stage.proposal, stage.gate, stage.measurement] for stage in kept], config.requests, config.ledger,
        machine_digest(), code_digest("tasks/engines", "tasks/serving", "tasks/release"),
    ]  # fmt: skip
    return workspace.store.once(f"ledger-{digest_of(parts)}", Ledger, lambda: _measure(workspace, kept))


def proven_misses(
    goals: Goals, release: Measurement, baseline: Measurement, ledger: Ledger
) -> tuple[str, ...]:
    """Goals that the release misses: limits by its measurement, speed-ups by the ends of the ledger's intervals.

    A speed-up is reached when the lower end of its interval is: a goal that is only likely met is not met.
    """
    limits = goals.model_copy(update={"min_decode_speedup": None, "min_throughput_speedup": None})
    speedups = (
        ("min_decode_speedup", ledger.total.decode_ci[0], goals.min_decode_speedup),
        ("min_throughput_speedup", ledger.total.throughput_ci[0], goals.min_throughput_speedup),
    )
    return missed_goals(limits, release, baseline) + tuple(
        f"{name}: at least {math.exp(low):.4g} is shown, {goal:g} is asked"
        for name, low, goal in speedups
        if goal is not None and math.exp(low) < goal
    )


def _measure(workspace: Workspace, kept: Sequence[StageResult]) -> Ledger:
    logger.info(
        "closing measurement: %d candidates, interleaved in %d blocks",
        len(kept),
        workspace.config.ledger.blocks,
    )
    settings, blocks, tokens = (
        workspace.config.requests,
        workspace.config.ledger.blocks,
        prompt_tokens(workspace),
    )
    chain = [_point(stage) for stage in kept]
    candidates = {stage.proposal.name: stage.proposal for stage in kept if stage.proposal is not None}
    with ExitStack() as stack:
        stack.enter_context(quiet(workspace.store))
        engines = {
            name: stack.enter_context(open_candidate(workspace, candidate))
            for name, candidate in candidates.items()
        }
        for engine in engines.values():
            warm_up(engine, tokens)
        decode = interleave(
            blocks,
            {name: decode_runner(engine, settings, tokens, blocks) for name, engine in engines.items()},
        )
        throughput = interleave(
            blocks,
            {name: throughput_runner(engine, settings, tokens, blocks) for name, engine in engines.items()},
        )
    return build_ledger(chain, decode, throughput, workspace.config.ledger.confidence)


def _point(stage: StageResult) -> LedgerPoint:
    if stage.proposal is None or stage.measurement is None:
        raise ValueError(f"stage {stage.stage} was kept without a measured proposal")
    judged = quality_level(stage.gate) if stage.gate is not None else QualityLevel()
    return LedgerPoint(
        stage=stage.stage,
        candidate=stage.proposal.name,
        memory=stage.measurement.memory,
        quality=SOURCE_QUALITY if stage.stage == "profile" else judged,
        seconds=stage.seconds,
    )
