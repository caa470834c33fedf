"""A load's figures under the names of the MLflow contract."""

from tasks.serving.load_record import LatencySpread, LoadComparison, ServedLoad, Spread


def load_metrics(comparison: LoadComparison) -> dict[str, float]:
    """The proposal's figures, or the release's where nothing is proposed; beside a proposal those before it."""
    if comparison.after is None:
        return served_metrics(comparison.before, "load")
    return served_metrics(comparison.before, "load_before") | served_metrics(comparison.after, "load")


def served_metrics(served: ServedLoad, where: str) -> dict[str, float]:
    """One candidate's figures as `perf/<where>/...`; what the machine or the configuration cannot tell is left out."""
    measures, of = served.measures, f"perf/{where}"
    metrics = {
        **_latency(f"{of}/queue_ms", measures.queue_ms),
        **_latency(f"{of}/ttft_ms", measures.ttft_ms),
        **_latency(f"{of}/itl_ms", measures.itl_ms),
        **_latency(f"{of}/end_to_end_ms", measures.end_to_end_ms),
        **_spread(f"{of}/throughput_tokens_per_s", measures.throughput_tokens_per_s),
        **_spread(f"{of}/requests_per_s", measures.requests_per_s),
        **_spread(f"{of}/goodput_requests_per_s", measures.goodput_requests_per_s),
        **_spread(f"{of}/slo_attainment", measures.slo_attainment),
        **_spread(f"{of}/slot_utilization", measures.slot_utilization),
        f"{of}/decoding_peak": float(measures.decoding_peak),
        f"mem/{where}/kv_tokens_mean": measures.cache.mean_tokens,
        f"mem/{where}/kv_tokens_peak": float(measures.cache.peak_tokens),
        f"mem/{where}/kv_wasted_fraction_contiguous": measures.cache.wasted_fraction_contiguous,
        f"mem/{where}/kv_wasted_fraction_paged": measures.cache.wasted_fraction_paged,
    }
    if where == "load":
        metrics |= _spread("perf/goodput_requests_per_s", measures.goodput_requests_per_s)
    if measures.energy_j_per_token is not None:
        name = "cost/energy_j_per_token" if where == "load" else f"cost/{where}/energy_j_per_token"
        metrics |= _spread(name, measures.energy_j_per_token)
    if measures.cost_per_million_tokens is not None:
        metrics |= _spread(f"cost/{where}/per_million_tokens", measures.cost_per_million_tokens)
    if served.saturation is not None and served.saturation.met_scale is not None:
        met = next(p for p in served.saturation.points if p.scale == served.saturation.met_scale)
        metrics[f"{of}/saturation_scale"] = met.scale
        metrics[f"{of}/saturation_goodput_requests_per_s"] = met.goodput_requests_per_s
    return metrics


def _latency(name: str, latency: LatencySpread) -> dict[str, float]:
    spreads = (("p50", latency.p50), ("p95", latency.p95), ("p99", latency.p99))
    return {key: value for end, spread in spreads for key, value in _spread(f"{name}_{end}", spread).items()}


def _spread(name: str, spread: Spread) -> dict[str, float]:
    if spread.ci_low is None or spread.ci_high is None:
        return {name: spread.mean}
    return {name: spread.mean, f"{name}_ci_low": spread.ci_low, f"{name}_ci_high": spread.ci_high}
