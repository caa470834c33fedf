"""Candidates too near each other for single measurements to rank, measured in turn before the first of them is judged.

Every candidate is measured in a process of its own, minutes after the one before, and a minute's disturbance puts a fast one behind a
slow one. So those near the fastest meet it once more: two engines are open at a time, slots alternate in ABBA order with the same
prompts for both, and the median of the ratios says who is judged first.
"""

import logging
import math
from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median

from tasks.engines.protocol import EngineError
from tasks.quantization.front import mean_speed
from tasks.quantization.out_of_memory import memory_errors
from tasks.release.candidate import Candidate
from tasks.release.machine import machine_digest
from tasks.release.measuring import open_candidate, prompt_tokens
from tasks.release.quiet import quiet
from tasks.release.stage_result import CandidateResult
from tasks.release.workspace import Workspace
from tasks.serving.interleaved import SlotRunner, decode_runner, log_ratios, throughput_runner
from tasks.serving.latency import warm_up
from tasks.store.digest import code_digest, digest_of
from tasks.store.record import Record

logger = logging.getLogger(__name__)

NEAR = 1.25
"""Two measurements of one candidate lay up to this far apart (docs/log.md, 2026-11-27): one stream 1.3, the mean of both ends 1.14."""
MOST = 4
"""The fastest that meet: each takes twice its single measurement."""


class SideBySide(Record):
    """What pairs of slots said of two candidates.

    Attributes:
        log_ratios: natural logarithms of the mean speed over the leader's, slot by slot.
    """

    log_ratios: tuple[float, ...]


def run_off(workspace: Workspace, ranked: Sequence[CandidateResult]) -> tuple[CandidateResult, ...]:
    """The same candidates, those near the first by speed in the order that interleaved pairs give.

    One that cannot be opened beside the first (two may not fit into memory) keeps the place that its own measurement gave it, and the
    log says so.

    Args:
        workspace: of the rollout.
        ranked: measured, the fastest first.
    """
    near = near_the_first(ranked)
    if len(near) < 2:
        return tuple(ranked)
    logger.info("%d candidates are near each other in speed: measured in turn", len(near))
    leader, *others = near
    compared = [with_ratio(leader, 0.0)]
    for each in others:
        try:
            with memory_errors():
                ratios = _side_by_side(workspace, _built(leader), _built(each)).log_ratios
        except (EngineError, MemoryError) as error:
            logger.warning(
                "%s was not measured beside %s: %s", each.name, leader.name, " ".join(str(error).split())
            )
            compared.append(each)
        else:
            compared.append(with_ratio(each, median(ratios)))
            logger.info("  %s: %.3fx of %s", each.name, math.exp(median(ratios)), leader.name)
    return (*in_order(compared), *ranked[len(near) :])


def near_the_first(ranked: Sequence[CandidateResult]) -> tuple[CandidateResult, ...]:
    """The first, and those whose own measurement does not say that they are slower; at most MOST.

    Args:
        ranked: measured, the fastest first.
    """
    if not ranked:
        return ()
    fastest = _speed(ranked[0])
    return tuple(each for each in ranked[:MOST] if fastest < NEAR * _speed(each))


def with_ratio(result: CandidateResult, log_ratio: float) -> CandidateResult:
    """A candidate with its speed over the leader's."""
    return result.model_copy(update={"side_by_side": math.exp(log_ratio)})


def in_order(compared: Sequence[CandidateResult]) -> tuple[CandidateResult, ...]:
    """By ratio, the fastest first; one without a ratio is as fast as its own measurement says.

    Args:
        compared: the leader first.
    """
    fastest = _speed(compared[0])

    def ratio(each: CandidateResult) -> float:
        return _speed(each) / fastest if each.side_by_side is None else each.side_by_side

    return tuple(sorted(compared, key=ratio, reverse=True))


def _side_by_side(workspace: Workspace, leader: Candidate, other: Candidate) -> SideBySide:
    config, tokens = workspace.config, prompt_tokens(workspace)
    parts = [
        [leader.artifact, leader.engine], [other.artifact, other.engine], config.requests, digest_of(tokens),
        machine_digest(), code_digest("tasks/engines", "tasks/serving", "tasks/quantization/run_off.py"),
    ]  # fmt: skip

    def compute() -> SideBySide:
        with ExitStack() as stack:
            stack.enter_context(quiet(workspace.store))
            present, proposed = (_runner(workspace, each, tokens, stack) for each in (leader, other))
            return SideBySide(
                log_ratios=tuple(log_ratios(range(2 * config.requests.repeats), present, proposed))
            )

    return workspace.store.once(f"side-by-side-{digest_of(parts)}", SideBySide, compute)[0]


def _runner(workspace: Workspace, candidate: Candidate, tokens: list[int], stack: ExitStack) -> SlotRunner:
    """Open a candidate, warm it up, and measure both ends of its speed slot by slot."""
    requests = workspace.config.requests
    engine = stack.enter_context(open_candidate(workspace, candidate))
    warm_up(engine, tokens)
    decode = decode_runner(engine, requests, tokens, requests.repeats)
    throughput = throughput_runner(engine, requests, tokens, requests.repeats)
    return lambda slot: mean_speed(decode(slot), throughput(slot))


def _built(result: CandidateResult) -> Candidate:
    if result.candidate is None:
        raise ValueError(f"{result.name} was never built")
    return result.candidate


def _speed(result: CandidateResult) -> float:
    if result.measurement is None:
        raise ValueError(f"{result.name} was never measured")
    performance = result.measurement.performance
    return mean_speed(performance.decode_tokens_per_s, performance.throughput_tokens_per_s)
