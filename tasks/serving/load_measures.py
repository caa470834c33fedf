"""What serving a load was like: latencies, throughput, goodput, utilization, cache, energy and cost.

A request is good when its time to first token and its mean inter-token latency are both within the SLO (the definition of
DistServe, Zhong et al., OSDI 2024, and of vLLM's benchmark). Goodput is good requests a second, attainment their share.

Requests of one run are not independent: they share the queue. So the unit of every interval is the whole run: the load is served
several times, each figure is computed run by run, reported as the mean over the runs with a t interval. One run has no interval.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from configs.load_profile import SloSettings
from tasks.serving.load_driver import LoadRun, RequestTimes
from tasks.serving.load_record import (
    CURVE_PERCENTS,
    CacheUse,
    LatencySpread,
    LoadMeasures,
    Spread,
    TimelinePoint,
)

CONFIDENCE = 0.95
TIMELINE_BINS = 40


def summarize_runs(
    runs: Sequence[LoadRun],
    slo: SloSettings,
    *,
    offered_requests_per_s: float | None = None,
    price_per_hour: float | None = None,
) -> LoadMeasures:
    """All figures of the runs of one load.

    Raises:
        ValueError: there is no run.
    """
    if not runs:
        raise ValueError("no run was measured; load.repeats must be at least 1")

    def spread(figure: Callable[[LoadRun], float]) -> Spread:
        return spread_of([figure(run) for run in runs])

    joules = [run.energy_j for run in runs if run.energy_j is not None]
    energy = [joule / tokens(run) for joule, run in zip(joules, runs, strict=False)]
    cost = None
    if price_per_hour is not None:
        cost = spread(lambda run: price_per_hour / 3600 * run.seconds / tokens(run) * 1e6)
    return LoadMeasures(
        requests=len(runs[0].requests),
        offered_requests_per_s=offered_requests_per_s,
        slo=slo,
        queue_ms=_latency(runs, lambda each: (each.queue_s,)),
        ttft_ms=_latency(runs, lambda each: (each.ttft_s,)),
        itl_ms=_latency(runs, lambda each: each.gaps_s),
        end_to_end_ms=_latency(runs, lambda each: (each.end_to_end_s,)),
        throughput_tokens_per_s=spread(lambda run: tokens(run) / run.seconds),
        requests_per_s=spread(lambda run: len(run.requests) / run.seconds),
        goodput_requests_per_s=spread(lambda run: good_requests(run, slo) / run.seconds),
        slo_attainment=spread(lambda run: attainment(run, slo)),
        slot_utilization=spread(slot_utilization),
        decoding_peak=max(step.decoding for run in runs for step in run.steps),
        cache=_cache(runs),
        energy_j_per_token=spread_of(energy) if len(energy) == len(runs) else None,
        cost_per_million_tokens=cost,
        timeline=_timeline(runs[0]),
    )


def spread_of(values: Sequence[float]) -> Spread:
    """Mean and t interval of a figure over the runs."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Spread(mean=mean, ci_low=None, ci_high=None, runs=tuple(values))
    half = float(stats.t.isf((1 - CONFIDENCE) / 2, len(values) - 1) * stats.sem(values))
    return Spread(mean=mean, ci_low=mean - half, ci_high=mean + half, runs=tuple(values))


def tokens(run: LoadRun) -> int:
    """New tokens of a run."""
    return sum(len(each.token_times_s) for each in run.requests)


def is_good(request: RequestTimes, slo: SloSettings) -> bool:
    """Whether a request met both limits."""
    return request.ttft_s * 1e3 <= slo.ttft_ms and request.mean_gap_s * 1e3 <= slo.itl_ms


def good_requests(run: LoadRun, slo: SloSettings) -> int:
    """How many requests met both limits."""
    return sum(is_good(request, slo) for request in run.requests)


def attainment(run: LoadRun, slo: SloSettings) -> float:
    """Share of the requests that met both limits."""
    return good_requests(run, slo) / len(run.requests)


def slot_utilization(run: LoadRun) -> float:
    """Occupied slots over all, mean over the whole run, idle times included."""
    busy = sum((step.ended_s - step.began_s) * step.running for step in run.steps)
    return busy / (run.seconds * run.slots)


def _latency(runs: Sequence[LoadRun], of_request: Callable[[RequestTimes], Sequence[float]]) -> LatencySpread:
    """Percentiles run by run, linear between neighbours. A load of one-token requests has no gaps: 0."""
    pooled = [np.array([s * 1e3 for each in run.requests for s in of_request(each)] or [0.0]) for run in runs]
    p50, p95, p99 = (spread_of([float(np.percentile(ms, q)) for ms in pooled]) for q in (50, 95, 99))
    curve = np.percentile(np.concatenate(pooled), CURVE_PERCENTS)
    return LatencySpread(p50=p50, p95=p95, p99=p99, curve=tuple(float(ms) for ms in curve))


def _cache(runs: Sequence[LoadRun]) -> CacheUse:
    steps = [(step, step.ended_s - step.began_s, run.longest_tokens) for run in runs for step in run.steps]
    held = sum(seconds * step.cached_tokens for step, seconds, _ in steps)
    paged = sum(seconds * step.paged_tokens for step, seconds, _ in steps)
    contiguous = sum(seconds * step.decoding * longest for step, seconds, longest in steps)
    return CacheUse(
        mean_tokens=held / sum(seconds for _, seconds, _ in steps),
        peak_tokens=max(step.cached_tokens for step, _, _ in steps),
        wasted_fraction_contiguous=1 - held / contiguous,
        wasted_fraction_paged=1 - held / paged,
    )


def _timeline(run: LoadRun) -> tuple[TimelinePoint, ...]:
    """TIMELINE_BINS equal pieces of a run."""
    width_s = run.seconds / TIMELINE_BINS
    busy, waiting = [0.0] * TIMELINE_BINS, [0] * TIMELINE_BINS
    for step in run.steps:
        first, last = (min(int(at_s / width_s), TIMELINE_BINS - 1) for at_s in (step.began_s, step.ended_s))
        for place in range(first, last + 1):
            inside_s = min(step.ended_s, (place + 1) * width_s) - max(step.began_s, place * width_s)
            busy[place] += max(0.0, inside_s) * step.running
            waiting[place] = max(waiting[place], step.waiting)
    return tuple(
        TimelinePoint(
            at_s=(place + 0.5) * width_s,
            utilization=min(1.0, busy[place] / (width_s * run.slots)),
            waiting=waiting[place],
        )
        for place in range(TIMELINE_BINS)
    )
