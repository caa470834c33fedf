"""The profile stage: what the source model costs on the baseline engine, before anything is changed."""

from configs.schema import ProfileSettings
from tasks.engines.open import open_engine
from tasks.release.candidate import Candidate, Measurement
from tasks.release.measuring import measure_candidate, open_candidate, prompt_tokens, source_candidate
from tasks.release.quiet import quiet
from tasks.release.stage_result import StageResult
from tasks.release.workspace import Workspace
from tasks.serving.latency import KvCacheEffect, LatencyRow, kv_cache_effect, latency_table, table_settings


def profile(workspace: Workspace, settings: ProfileSettings) -> StageResult:
    """Measure the source: the configured requests, the latency table, decoding with and without the KV cache.

    Raises:
        EngineError: the source does not run.
    """
    source = source_candidate(workspace, settings.baseline)
    measurement = measure_candidate(workspace, source)
    rows = _table(workspace, settings, source)
    effects = _cache_effects(workspace, settings, source)
    speed, memory = measurement.performance, measurement.memory
    return StageResult(
        stage="profile",
        verdict="PASS",
        kept=True,
        reason=(
            f"{source.name}: {speed.decode_tokens_per_s:.1f} tokens/s in one stream, {memory.weights_mib:.0f} MiB of weights, "
            f"peak {memory.peak_mib:.0f} MiB (predicted {memory.predicted_mib:.0f})"
        ),
        proposal=source,
        measurement=measurement,
        metrics=_metrics(measurement, rows, effects),
        text={"latency_table.csv": _csv(rows), "kv_cache_effect.csv": _effects_csv(effects)},
    )


def _table(workspace: Workspace, settings: ProfileSettings, source: Candidate) -> tuple[LatencyRow, ...]:
    wide = source.model_copy(update={"engine": table_settings(source.engine, settings)})
    with quiet(workspace.store), open_candidate(workspace, wide) as engine:
        return latency_table(engine, settings, prompt_tokens(workspace))


def _cache_effects(
    workspace: Workspace, settings: ProfileSettings, source: Candidate
) -> tuple[KvCacheEffect, ...]:
    if source.engine.engine != "transformers":
        return ()  # the other engines cannot decode without their cache
    artifact = workspace.store.open(source.artifact)
    uncached = source.engine.model_copy(update={"use_kv_cache": False})
    with (
        quiet(workspace.store),
        open_engine(artifact, source.engine) as cached,
        open_engine(artifact, uncached) as without,
    ):
        return kv_cache_effect(cached, without, settings, prompt_tokens(workspace))


def _metrics(
    measurement: Measurement, rows: tuple[LatencyRow, ...], effects: tuple[KvCacheEffect, ...]
) -> dict[str, float]:
    memory = measurement.memory
    metrics = {"mem/predicted_error_fraction": memory.predicted_mib / memory.peak_mib - 1}
    for row in rows:
        where = f"batch_{row.batch}_context_{row.context_tokens}"
        metrics[f"perf/{where}/prefill_tokens_per_s"] = row.prefill_tokens_per_s
        metrics[f"perf/{where}/decode_tokens_per_s"] = row.decode_tokens_per_s
        metrics[f"perf/{where}/ttft_ms_p50"] = row.ttft_ms.p50
        metrics[f"perf/{where}/itl_ms_p95"] = row.itl_ms.p95
    for effect in effects:
        metrics[f"perf/context_{effect.context_tokens}/kv_cache_speedup"] = effect.speedup
    return metrics


def _csv(rows: tuple[LatencyRow, ...]) -> str:
    head = "batch,context_tokens,new_tokens,ttft_ms_p50,ttft_ms_p95,ttft_ms_p99,itl_ms_p50,itl_ms_p95,itl_ms_p99,"
    lines = [head + "prefill_tokens_per_s,decode_tokens_per_s"]
    for row in rows:
        ttft, itl = row.ttft_ms, row.itl_ms
        latencies = [ttft.p50, ttft.p95, ttft.p99, itl.p50, itl.p95, itl.p99]
        figures = [*latencies, row.prefill_tokens_per_s, row.decode_tokens_per_s]
        lines.append(
            f"{row.batch},{row.context_tokens},{row.new_tokens},"
            + ",".join(f"{figure:.3f}" for figure in figures)
        )
    return "\n".join([*lines, ""])


def _effects_csv(effects: tuple[KvCacheEffect, ...]) -> str:
    lines = ["context_tokens,new_tokens,cached_tokens_per_s,uncached_tokens_per_s,speedup"]
    lines += [
        f"{e.context_tokens},{e.new_tokens},{e.cached_tokens_per_s:.3f},{e.uncached_tokens_per_s:.3f},{e.speedup:.3f}"
        for e in effects
    ]
    return "\n".join([*lines, ""])
