"""The figures of a stage under the names of the MLflow contract (`mlflow/README.md`), finite or refused.

Signs: `_delta`, `_ci_low` and `_ci_high` are candidate minus source as a user reads them, so a fall in
accuracy is negative. Perplexity's are relative (0.02 is +2 %). KL and flips are distances from the source and
have no delta.
"""

import math
import re
from collections.abc import Mapping

from tasks.quality.verdict import GateVerdict, MetricVerdict
from tasks.release.candidate import Measurement, Percentiles
from tasks.release.stage_result import CandidateResult, StageResult

_NOT_IN_A_NAME = re.compile(r"[^\w.\-]")


def metric_name(*parts: str) -> str:
    """Join parts with "/"; lm-eval's "acc,none" becomes "acc", what MLflow refuses becomes "_"."""
    return "/".join(_NOT_IN_A_NAME.sub("_", part.partition(",")[0]) for part in parts)


def stage_metrics(result: StageResult) -> dict[str, float]:
    """Everything a stage run shows.

    Raises:
        ValueError: a figure is not finite, or two different figures claim one name.
    """
    return merge(
        measurement_metrics(result.measurement) if result.measurement else {},
        gate_metrics(result.gate) if result.gate else {},
        {"time/stage_s": result.seconds},
        result.metrics,
    )


def candidate_metrics(result: CandidateResult) -> dict[str, float]:
    """Everything a candidate run shows: measurement, the screen as `quality/search/...`, build and parity."""
    screen = {metric_name("quality", "search", name): value for name, value in result.screen.items()}
    measured = measurement_metrics(result.measurement) if result.measurement else {}
    paired = {} if result.pair_ratio is None else {"perf/pair_ratio": result.pair_ratio}
    return merge(measured, screen, paired, result.metrics)


def measurement_metrics(measurement: Measurement) -> dict[str, float]:
    """`perf/...`, `mem/...` and `time/load_s`."""
    speed, memory = measurement.performance, measurement.memory
    return {
        "perf/prefill_tokens_per_s": speed.prefill_tokens_per_s,
        "perf/decode_tokens_per_s": speed.decode_tokens_per_s,
        "perf/throughput_tokens_per_s": speed.throughput_tokens_per_s,
        **_percentiles("perf/ttft_ms", speed.ttft_ms),
        **_percentiles("perf/itl_ms", speed.itl_ms),
        "mem/weights_mib": memory.weights_mib,
        "mem/kv_mib": memory.kv_mib,
        "mem/peak_mib": memory.peak_mib,
        "mem/predicted_mib": memory.predicted_mib,
        **(
            {"mem/predicted_error_fraction": memory.predicted_mib / memory.peak_mib - 1}
            if memory.peak_mib
            else {}
        ),
        "time/load_s": speed.load_s,
    }


def gate_metrics(gate: GateVerdict) -> dict[str, float]:
    """`quality/...`: every gated metric with its interval, the largest KL, and the flip rate."""
    metrics = merge(*(_metric(metric) for metric in gate.metrics))
    if divergences := [metric for metric in gate.metrics if metric.metric == "kl"]:
        worst = max(divergences, key=lambda metric: metric.candidate)
        metrics["quality/kl_nats"] = worst.candidate
        metrics["quality/kl_nats_ci_low"], metrics["quality/kl_nats_ci_high"] = worst.ci_low, worst.ci_high
    if gate.flip_rate is not None:
        metrics["quality/flip_rate"] = gate.flip_rate
    return metrics


def delta(metric: MetricVerdict) -> tuple[float, float, float]:
    """(difference, low, high): candidate minus source; relative for perplexity, KL itself."""
    if metric.unit == "log ratio":
        return math.expm1(metric.loss), math.expm1(metric.ci_low), math.expm1(metric.ci_high)
    if metric.reference is None:
        return metric.candidate, metric.ci_low, metric.ci_high
    return -metric.loss, -metric.ci_high, -metric.ci_low


def merge(*groups: Mapping[str, float]) -> dict[str, float]:
    """One dictionary of all figures.

    Raises:
        ValueError: a figure is not finite, or two different figures claim one name.
    """
    merged: dict[str, float] = {}
    for group in groups:
        for name, value in group.items():
            if not math.isfinite(value):
                raise ValueError(
                    f"metric {name} is {value}; a measurement that is not finite is an error, not a result"
                )
            if merged.setdefault(name, value) != value:
                raise ValueError(
                    f"metric {name} is claimed twice, as {merged[name]} and {value}; rename one of them"
                )
    return merged


def _percentiles(name: str, percentiles: Percentiles) -> dict[str, float]:
    return {f"{name}_p50": percentiles.p50, f"{name}_p95": percentiles.p95, f"{name}_p99": percentiles.p99}


def _metric(metric: MetricVerdict) -> dict[str, float]:
    name = metric_name("quality", metric.task, "kl_nats" if metric.metric == "kl" else metric.metric)
    difference, low, high = delta(metric)
    figures = {name: metric.candidate, f"{name}_ci_low": low, f"{name}_ci_high": high}
    return figures if metric.reference is None else figures | {f"{name}_delta": difference}
