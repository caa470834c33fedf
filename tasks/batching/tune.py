"""The batching stage: scheduler settings tried on the request list, and the quickest one judged.

The artifact does not change, so its scores stand: quality is scored through the served graph with the served cache type, which the
scheduler does not touch, and the gate is answered from the same samples. What may change is speed, and a proposal has to be
faster than the stage before it by the configured factor.
"""

from configs.schema import BatchingSettings
from tasks.batching.paging import contiguous, padded, paged
from tasks.batching.schedule import Schedule, measure_schedule
from tasks.engines.protocol import EngineError
from tasks.profiling.cache_memory import BLOCK_TOKENS, cache_token_bytes
from tasks.release.candidate import Candidate, Measurement
from tasks.release.judging import judge_candidate
from tasks.release.measuring import measure_candidate, open_candidate, prompt_tokens
from tasks.release.quiet import quiet
from tasks.release.stage_result import CandidateResult, StageResult
from tasks.release.workspace import Workspace
from tasks.serving.requests import request_list


def tune_batching(workspace: Workspace, settings: BatchingSettings, release: Candidate) -> StageResult:
    """Try every scheduler, compare static with continuous batching, propose the quickest.

    Raises:
        EngineError: the release itself does not run any more.
        QualityError, StoreError: the verdict could not be reached.
    """
    present = measure_candidate(workspace, release)
    results = tuple(_try(workspace, release, index, settings) for index in range(len(settings.schedulers)))
    measured = [result for result in results if result.measurement is not None]
    best = max(measured, key=lambda result: _throughput(result.measurement), default=None)
    schedules = _compare_policies(workspace, measured)
    metrics = _metrics(workspace, release, schedules)
    text = {"static_against_continuous.csv": _csv(schedules)}
    if best is None or best.candidate is None:
        reasons = "; ".join(f"{result.name}: {result.error}" for result in results)
        return StageResult(stage="batching", verdict="ERROR", kept=False, candidates=results, metrics=metrics, text=text,
                           reason=f"no scheduler setting ran ({reasons})")  # fmt: skip
    gain = _throughput(best.measurement) / _throughput(present)
    figures = f"{gain:.3f}x the throughput of {release.name}"
    if gain <= settings.min_gain or best.candidate == release:
        return StageResult(
            stage="batching", verdict="FAIL", kept=False, proposal=best.candidate, measurement=best.measurement,
            candidates=results, metrics=metrics | {"perf/throughput_gain": gain}, text=text,
            reason=f"the quickest, {best.name}, has {figures}; more than {settings.min_gain:g} is asked",
        )  # fmt: skip
    judged = judge_candidate(workspace, best.candidate, "preserve")
    return StageResult(
        stage="batching", verdict=judged.verdict, kept=judged.verdict == "PASS", proposal=best.candidate,
        measurement=best.measurement, gate=judged.gate, candidates=results, samples=judged.samples, provisional=judged.provisional,
        metrics=metrics | judged.metrics | {"perf/throughput_gain": gain}, text=text | judged.text,
        reason=f"{best.name}: {figures}; {judged.reason}",
    )  # fmt: skip


def _try(workspace: Workspace, release: Candidate, index: int, settings: BatchingSettings) -> CandidateResult:
    scheduler = settings.schedulers[index]
    name = (
        f"{release.name}, {scheduler.max_num_seqs} sequences, {scheduler.max_num_batched_tokens} tokens a step"
        f"{', prefix cache' if scheduler.prefix_caching else ''}{'' if scheduler.split_prefill else ', whole prompts'}"
    )
    engine = release.engine.model_copy(update={"scheduler": scheduler})
    candidate = release.model_copy(update={"name": name, "engine": engine})
    if engine == release.engine:
        candidate = release
    try:
        measurement = measure_candidate(workspace, candidate)
    except (EngineError, MemoryError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return CandidateResult(name=name, candidate=candidate, measurement=None, error=reason)
    return CandidateResult(name=candidate.name, candidate=candidate, measurement=measurement)


def _compare_policies(workspace: Workspace, results: list[CandidateResult]) -> tuple[Schedule, ...]:
    """Static against continuous batching wherever the list is longer than the slots; elsewhere they are the same."""
    schedules = []
    for result in results:
        candidate = result.candidate
        if candidate is None or candidate.engine.scheduler.max_num_seqs >= workspace.config.requests.count:
            continue
        with quiet(workspace.store), open_candidate(workspace, candidate) as engine:
            schedules.append(measure_schedule(engine, workspace.config.requests, prompt_tokens(workspace)))
    return tuple(schedules)


def _metrics(workspace: Workspace, release: Candidate, schedules: tuple[Schedule, ...]) -> dict[str, float]:
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
        metrics[f"{where}/static_utilization"] = schedule.static.model.utilization
        metrics[f"{where}/continuous_utilization"] = schedule.continuous.model.utilization
    return metrics


def _csv(schedules: tuple[Schedule, ...]) -> str:
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


def _throughput(measurement: Measurement | None) -> float:
    return 0.0 if measurement is None else measurement.performance.throughput_tokens_per_s
