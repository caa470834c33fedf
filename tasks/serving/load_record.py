"""What serving a load was like, as records; `load_measures.py` says how each figure is made."""

from configs.load_profile import SloSettings
from tasks.store.record import Record

CURVE_PERCENTS = (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99)


class Spread(Record):
    """A figure over the runs.

    Attributes:
        mean: over the runs.
        ci_low: lower end of the 95 % t interval; None with one run.
        ci_high: upper end; None with one run.
        runs: each run's own.
    """

    mean: float
    ci_low: float | None
    ci_high: float | None
    runs: tuple[float, ...]


class LatencySpread(Record):
    """Percentiles of one latency, ms, and its percentiles at CURVE_PERCENTS over all runs together."""

    p50: Spread
    p95: Spread
    p99: Spread
    curve: tuple[float, ...]


class CacheUse(Record):
    """KV cache of the requests that had their first token, means over time while the engine stepped.

    Attributes:
        mean_tokens: tokens that were there.
        peak_tokens: the most.
        wasted_fraction_contiguous: share of the memory that one piece a request, as long as the longest of the load,
            would leave empty.
        wasted_fraction_paged: share that whole blocks leave empty. Shared prefixes count for each request.
    """

    mean_tokens: float
    peak_tokens: int
    wasted_fraction_contiguous: float
    wasted_fraction_paged: float


class TimelinePoint(Record):
    """A piece of the first run: mean share of occupied slots, requests waiting at most."""

    at_s: float
    utilization: float
    waiting: int


class LoadMeasures(Record):
    """One candidate under one load.

    Attributes:
        requests: of a run.
        offered_requests_per_s: mean arrivals a second; None in a closed loop.
        slo: the limits behind goodput and attainment.
        queue_ms: arrival to slot.
        ttft_ms: arrival to first token.
        itl_ms: between neighbouring tokens, of all requests.
        end_to_end_ms: arrival to last token.
        throughput_tokens_per_s: new tokens a second, from the start to the last token.
        requests_per_s: answers a second.
        goodput_requests_per_s: good ones a second.
        slo_attainment: share of good ones.
        slot_utilization: occupied slots over all, mean over the whole time.
        decoding_peak: requests that had a first token and no last one, at most: what the cache really held side by side.
        cache: its use.
        energy_j_per_token: joules a new token; None where the machine cannot tell.
        cost_per_million_tokens: new tokens, in the currency of the price; None without one.
        timeline: slots over time, first run.
    """

    requests: int
    offered_requests_per_s: float | None
    slo: SloSettings
    queue_ms: LatencySpread
    ttft_ms: LatencySpread
    itl_ms: LatencySpread
    end_to_end_ms: LatencySpread
    throughput_tokens_per_s: Spread
    requests_per_s: Spread
    goodput_requests_per_s: Spread
    slo_attainment: Spread
    slot_utilization: Spread
    decoding_peak: int
    cache: CacheUse
    energy_j_per_token: Spread | None
    cost_per_million_tokens: Spread | None
    timeline: tuple[TimelinePoint, ...]


class LoadPoint(Record):
    """One load that was tried.

    Attributes:
        scale: times the configured load.
        offered_requests_per_s: mean arrivals a second; None in a closed loop.
        attainment: share of the requests that met the SLO, mean over the runs.
        goodput_requests_per_s: good ones a second.
        throughput_tokens_per_s: new tokens a second.
        ttft_ms_p95: time to first token.
        itl_ms_p95: inter-token latency.
    """

    scale: float
    offered_requests_per_s: float | None
    attainment: float
    goodput_requests_per_s: float
    throughput_tokens_per_s: float
    ttft_ms_p95: float
    itl_ms_p95: float


class Saturation(Record):
    """The curve and what it says.

    Attributes:
        points: every load that was tried, lowest first.
        met_scale: the highest load below every missed one that met the SLO; None where none did.
        missed_scale: the lowest load that missed it; None where none did.
        target: the attainment asked for.
        stopped: which part of the stop rule ended the search.
    """

    points: tuple[LoadPoint, ...]
    met_scale: float | None
    missed_scale: float | None
    target: float
    stopped: str


class ServedLoad(Record):
    """One candidate under the load.

    Attributes:
        candidate: its name.
        measures: everything measured.
        saturation: how its goodput went with the load; None where it was not asked for.
    """

    candidate: str
    measures: LoadMeasures
    saturation: Saturation | None = None


class LoadComparison(Record):
    """The release that the batching stage was given, and its proposal.

    Attributes:
        before: the release.
        after: the proposal; None where there was none.
    """

    before: ServedLoad
    after: ServedLoad | None = None
