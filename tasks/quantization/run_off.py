"""Candidates too near each other for single measurements to rank, measured in turn before the first of them is judged.

Every candidate is measured in a process of its own, minutes after the one before, and a minute's disturbance puts a fast one behind a
slow one. So those near the fastest meet it once more, two in a process: slots alternate in ABBA order with the same prompts for both,
and the median of the ratios ranks. Of those that are as fast as the fastest the least divergent is judged first.
"""

import logging
from collections.abc import Sequence
from statistics import median

from tasks.engines.protocol import EngineError
from tasks.release.candidate import Candidate
from tasks.release.in_pairs import Pair, Ratios, ratios_in_pairs
from tasks.release.machine import machine_digest
from tasks.release.measuring import serve_job
from tasks.release.quiet import quiet
from tasks.release.stage_result import CandidateResult
from tasks.release.workspace import Workspace
from tasks.store.digest import code_digest, digest_of

logger = logging.getLogger(__name__)

NEAR = 1.25
"""A short and a full measurement of one artifact lay 10 % apart (standard deviation; 29 % the worst: docs/log.md, 2026-11-26)."""
MOST = 4
"""So many meet, the fastest: each pair takes some eight times a single measurement's requests."""
EQUAL = 0.99
"""Of the fastest: what a median of eight slots does not tell from it."""
_BLOCKS_A_REPEAT = 2


def run_off(workspace: Workspace, ranked: Sequence[CandidateResult]) -> tuple[CandidateResult, ...]:
    """The same candidates in the order in which they are judged, the ratios of those that met in them.

    One that could not be measured beside the first keeps the place that its own measurement gave it, and says why.

    Args:
        workspace: of the rollout.
        ranked: measured, the fastest first.

    Raises:
        StoreError: an artifact is missing or damaged.
    """
    near = near_the_first(ranked)
    if len(near) < 2:
        return tuple(ranked)
    logger.info("%d candidates are near each other in speed: measured in turn", len(near))
    leader = near[0].model_copy(update={"pair_ratio": 1.0})
    compared = [_compared(workspace, _built(leader), each) for each in near[1:]]
    return in_order((leader, *compared, *ranked[len(near) :]))


def near_the_first(ranked: Sequence[CandidateResult]) -> tuple[CandidateResult, ...]:
    """The first, and those whose own measurement does not say that they are slower; at most MOST.

    Args:
        ranked: measured, the fastest first.
    """
    return tuple(each for each in ranked[:MOST] if _speed(ranked[0]) < NEAR * _speed(each))


def in_order(compared: Sequence[CandidateResult]) -> tuple[CandidateResult, ...]:
    """The fastest first, but of those as fast as it the least divergent; one without a ratio is as fast as its own measurement says.

    Args:
        compared: the leader first.
    """

    def ratio(each: CandidateResult) -> float:
        return _speed(each) / _speed(compared[0]) if each.pair_ratio is None else each.pair_ratio

    fastest = max(ratio(each) for each in compared)

    def rank(each: CandidateResult) -> tuple[bool, float]:
        equal = ratio(each) >= EQUAL * fastest
        return not equal, each.screen["kl_nats"] if equal else -ratio(each)

    return tuple(sorted(compared, key=rank))


def _compared(workspace: Workspace, leader: Candidate, result: CandidateResult) -> CandidateResult:
    try:
        found = median(_ratios(workspace, leader, _built(result)).ratios)
    except EngineError as error:
        reason = f"not measured beside {leader.name}: {' '.join(str(error).split())}"
        logger.warning("%s %s", result.name, reason)
        return result.model_copy(update={"unpaired": reason})
    logger.info("  %s: %.3fx of %s", result.name, found, leader.name)
    return result.model_copy(update={"pair_ratio": found})


def _ratios(workspace: Workspace, leader: Candidate, other: Candidate) -> Ratios:
    requests = workspace.config.requests
    present, proposed = (serve_job(workspace, each, requests) for each in (leader, other))
    pair = Pair(present=present, proposed=proposed, blocks=_BLOCKS_A_REPEAT * requests.repeats)
    code = code_digest("tasks/engines", "tasks/serving", "tasks/release")

    def compute() -> Ratios:
        for each in (leader, other):
            workspace.store.open(each.artifact)  # what is damaged is told here, not by a child
        with quiet(workspace.store):
            return ratios_in_pairs(workspace.store, pair)

    key = f"pair-{digest_of([pair, machine_digest(), code])}"
    return workspace.store.once(key, Ratios, compute)[0]


def _built(result: CandidateResult) -> Candidate:
    if result.candidate is None:
        raise ValueError(f"{result.name} was never built")
    return result.candidate


def _speed(result: CandidateResult) -> float:
    if result.measurement is None:
        raise ValueError(f"{result.name} was never measured")
    return result.measurement.performance.mean_tokens_per_s
