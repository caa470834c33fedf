"""What the batching stage shows: figures under their MLflow names, and tables."""

import math

from tasks.batching.capacity import predicted_capacity
from tasks.batching.halving import Search
from tasks.batching.paging import contiguous, padded, paged
from tasks.batching.schedule import Schedule
from tasks.batching.speed_gate import SpeedVerdict
from tasks.profiling.cache_memory import BLOCK_TOKENS, cache_token_bytes
from tasks.release.candidate import Candidate
from tasks.release.measuring import prompt_tokens
from tasks.release.workspace import Workspace
from tasks.serving.load_metrics import load_metrics
from tasks.serving.load_record import LoadComparison
from tasks.serving.requests import request_list
from tasks.serving.workload import make_workload


def policy_metrics(
    workspace: Workspace, release: Candidate, schedules: tuple[Schedule, ...]
) -> dict[str, float]:
    """Measured and predicted gain of continuous batching, and the cache that each way of allocating would waste."""
    requests = request_list(workspace.config.requests, prompt_tokens(workspace))
    token_bytes = cache_token_bytes(workspace.architecture, release.engine.kv_cache)
    longest = workspace.config.requests.prompt_tokens + workspace.config.requests.max_new_tokens
    slots = release.engine.scheduler.max_num_seqs
    metrics = {
        "mem/kv_wasted_fraction_contiguous": contiguous(requests, token_bytes, longest).wasted_fraction,
        "mem/kv_wasted_fraction_padded": padded(requests, token_bytes, slots).wasted_fraction,
        "mem/kv_wasted_fraction_paged": paged(requests, token_bytes, BLOCK_TOKENS).wasted_fraction,
    }
    for schedule in schedules:
        where = f"perf/slots_{schedule.scheduler.max_num_seqs}_{schedule.scheduler.max_num_batched_tokens}"
        metrics[f"{where}/continuous_gain"] = schedule.measured_gain
        metrics[f"{where}/continuous_gain_predicted"] = schedule.predicted_gain
        metrics[f"{where}/continuous_gain_error_fraction"] = schedule.gain_error
        metrics[f"{where}/static_utilization"] = schedule.static.model.utilization
        metrics[f"{where}/continuous_utilization"] = schedule.continuous.model.utilization
    return metrics


def gain_metrics(speed: SpeedVerdict | None, found: Search | None, under_load: bool) -> dict[str, float]:
    """The gain with its interval, and what the search cost against the full grid."""
    metrics: dict[str, float] = {}
    if found is not None:
        metrics |= {
            "perf/search_pairs": float(found.pairs),
            "perf/search_cost_fraction": found.cost_fraction,
        }
    if speed is not None:
        name = "perf/goodput_gain" if under_load else "perf/throughput_gain"
        metrics |= {name: speed.gain, f"{name}_ci_low": speed.ci_low, f"{name}_ci_high": speed.ci_high}
    return metrics


def comparison_metrics(
    workspace: Workspace, compared: LoadComparison | None, served: Candidate
) -> dict[str, float]:
    """The load's figures, and the predicted number of requests side by side beside the measured one.

    The prediction is of a full house; its error is told only where requests had to wait.
    """
    load = workspace.config.load
    if compared is None or load is None:
        return {}
    measures = (compared.after or compared.before).measures
    requests = make_workload(load, prompt_tokens(workspace)).requests
    predicted = predicted_capacity(workspace.architecture, served.engine, requests)
    metrics = load_metrics(compared) | {"perf/load/decoding_capacity_predicted": predicted}
    if any(point.waiting for point in measures.timeline):
        metrics["perf/load/decoding_capacity_error_fraction"] = predicted / measures.decoding_peak - 1
    return metrics


def policy_csv(schedules: tuple[Schedule, ...]) -> str:
    """Static against continuous batching, one line a policy."""
    lines = [
        "max_num_seqs,max_num_batched_tokens,policy,throughput_tokens_per_s,ttft_ms_p95,completion_ms_p95,steps,utilization"
    ]
    lines += [
        f"{schedule.scheduler.max_num_seqs},{schedule.scheduler.max_num_batched_tokens},{run.policy},"
        f"{run.throughput_tokens_per_s:.1f},{run.ttft_ms.p95:.1f},{run.completion_ms.p95:.1f},"
        f"{run.model.steps},{run.model.utilization:.4f}"
        for schedule in schedules
        for run in (schedule.static, schedule.continuous)
    ]
    return "\n".join([*lines, ""])


def search_csv(found: Search) -> str:
    """Every setting that ran, best first, and why the search ended."""
    lines = ["setting;rounds;pairs;ratio to the release"]
    lines += [
        f"{each.name};{each.rounds};{len(each.log_ratios)};{math.exp(each.mean):.3f}" for each in found.tried
    ]
    cost = f"{found.pairs} pairs, {found.cost_fraction:.0%} of the full grid's {found.full_pairs}"
    return "\n".join([*lines, f"# {cost}; ended because {found.stopped}", ""])
