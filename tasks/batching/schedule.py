"""One scheduler setting on the request list: static against continuous batching, beside the model."""

from collections.abc import Sequence
from itertools import accumulate
from statistics import median
from typing import Literal

from configs.engine import SchedulerSettings
from configs.schema import RequestSettings
from tasks.batching.utilization import Utilization, continuous_utilization, static_utilization
from tasks.engines.protocol import Engine, Generation, GenerationRequest
from tasks.release.candidate import Percentiles
from tasks.serving.latency import generate, percentiles_ms, throughput, warm_up
from tasks.serving.requests import request_list
from tasks.store.record import Record


class ScheduleRun(Record):
    """The request list under one policy, all requests arriving at once.

    Attributes:
        policy: static: groups of `max_num_seqs`, each started when the one before it is done; continuous: all
            at once.
        throughput_tokens_per_s: median over the repeats.
        ttft_ms: from arrival to the first token, waiting for a slot included.
        completion_ms: from arrival to the last token.
        model: the same list in steps.
    """

    policy: Literal["static", "continuous"]
    throughput_tokens_per_s: float
    ttft_ms: Percentiles
    completion_ms: Percentiles
    model: Utilization


class Schedule(Record):
    """Both policies under one scheduler setting, and how well the step model foretold the gain.

    Attributes:
        scheduler: the setting.
        static: run in groups.
        continuous: run at once.
        predicted_gain: steps of static over steps of continuous batching.
        measured_gain: throughput of continuous over throughput of static batching.
        gain_error: predicted / measured - 1. Above 0 as a rule: the model takes a step with few requests in
            it for as dear as a full one.
    """

    scheduler: SchedulerSettings
    static: ScheduleRun
    continuous: ScheduleRun
    predicted_gain: float
    measured_gain: float
    gain_error: float


def measure_schedule(engine: Engine, settings: RequestSettings, text_tokens: Sequence[int]) -> Schedule:
    """Serve the list both ways in turn, `settings.repeats` times, after a warm-up.

    Args:
        engine: open under the scheduler settings to try, otherwise idle.
        settings: the request list.
        text_tokens: token ids to cut prompts from.

    Raises:
        EngineError: the engine failed or made fewer tokens than asked for.
        ValueError: the text is too short.
    """
    scheduler = engine.settings.scheduler
    requests = request_list(settings, text_tokens)
    warm_up(engine, text_tokens)
    static, continuous = [], []
    for _ in range(settings.repeats):
        static.append(_grouped(engine, requests, scheduler.max_num_seqs))
        continuous.append(generate(engine, requests))
    lengths = [request.max_new_tokens for request in requests]
    prefill = [_waiting_steps(len(request.prompt), scheduler) for request in requests]
    runs = (
        _run("static", static, static_utilization(lengths, scheduler.max_num_seqs, prefill)),
        _run("continuous", continuous, continuous_utilization(lengths, scheduler.max_num_seqs, prefill)),
    )
    predicted = runs[0].model.steps / runs[1].model.steps
    measured = runs[1].throughput_tokens_per_s / runs[0].throughput_tokens_per_s
    return Schedule(
        scheduler=scheduler,
        static=runs[0],
        continuous=runs[1],
        predicted_gain=predicted,
        measured_gain=measured,
        gain_error=predicted / measured - 1,
    )


def _grouped(engine: Engine, requests: Sequence[GenerationRequest], size: int) -> list[Generation]:
    """Serve group after group; the times of a group count from the arrival of the whole list."""
    groups = [generate(engine, requests[first : first + size]) for first in range(0, len(requests), size)]
    seconds = [max(generation.token_times_s[-1] for generation in group) for group in groups]
    starts_s = [0.0, *accumulate(seconds)]
    return [
        Generation(generation.tokens, tuple(start_s + time for time in generation.token_times_s))
        for group, start_s in zip(groups, starts_s, strict=False)
        for generation in group
    ]


def _waiting_steps(prompt_tokens: int, scheduler: SchedulerSettings) -> int:
    """Steps of the prompt before the one that gives the first token: a long prompt goes in chunks."""
    if not scheduler.split_prefill:
        return 0
    return -(-prompt_tokens // scheduler.max_num_batched_tokens) - 1


def _run(
    policy: Literal["static", "continuous"], repeats: Sequence[list[Generation]], model: Utilization
) -> ScheduleRun:
    served = [generation for repeat in repeats for generation in repeat]
    return ScheduleRun(
        policy=policy,
        throughput_tokens_per_s=median(throughput(repeat) for repeat in repeats),
        ttft_ms=percentiles_ms([generation.token_times_s[0] for generation in served]),
        completion_ms=percentiles_ms([generation.token_times_s[-1] for generation in served]),
        model=model,
    )
