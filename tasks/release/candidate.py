"""A candidate: one artifact served under one engine configuration, and what was measured of it."""

import math

from configs.engine import EngineSettings
from configs.speculation import DraftModel
from configs.weights import WeightSettings
from tasks.store.record import Record


class Candidate(Record):
    """What could be released.

    Attributes:
        name: short and readable: "openvino int8 asym, u8 cache".
        artifact: address of the artifact.
        engine: the engine configuration it is served under.
        weights: readable weight format: "f32", "int8 asym per channel", "int4 sym g64".
        format: the same as settings, so that a later stage can export an adapted model in the same format.
    """

    name: str
    artifact: str
    engine: EngineSettings
    weights: str
    format: WeightSettings = WeightSettings()

    @property
    def draft(self) -> str | None:
        """Address of the draft model that speculates for it; None without one."""
        speculation = self.engine.speculation
        return speculation.draft if isinstance(speculation, DraftModel) else None

    @property
    def artifacts(self) -> tuple[str, ...]:
        """Every artifact that serving it opens."""
        return (self.artifact,) if self.draft is None else (self.artifact, self.draft)


class Percentiles(Record):
    """p50, p95 and p99 of one latency, milliseconds."""

    p50: float
    p95: float
    p99: float


class Performance(Record):
    """Speed of one candidate on the configured requests. Rates are tokens a second.

    Attributes:
        prefill_tokens_per_s: prompt tokens a second, one stream.
        decode_tokens_per_s: new tokens a second after the first, one stream.
        throughput_tokens_per_s: new tokens a second with all requests of the list in flight.
        ttft_ms: time to first token, one stream.
        itl_ms: inter-token latency, one stream.
        load_s: from the sealed artifact to the first possible call.
        decode_runs: decode_tokens_per_s of every repeat.
        throughput_runs: throughput_tokens_per_s of every repeat.
    """

    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    throughput_tokens_per_s: float
    ttft_ms: Percentiles
    itl_ms: Percentiles
    load_s: float
    decode_runs: tuple[float, ...] = ()
    throughput_runs: tuple[float, ...] = ()

    @property
    def mean_tokens_per_s(self) -> float:
        """Both ends of the speed in one figure."""
        return mean_speed(self.decode_tokens_per_s, self.throughput_tokens_per_s)


def mean_speed(decode_tokens_per_s: float, throughput_tokens_per_s: float) -> float:
    """One stream and all in flight, averaged geometrically: neither end may be bought with the other."""
    return math.sqrt(decode_tokens_per_s * throughput_tokens_per_s)


class Memory(Record):
    """Memory of one candidate, MiB.

    Attributes:
        weights_mib: weight bytes of the artifact.
        kv_mib: KV cache at the configured batch and context.
        peak_mib: largest growth of the resident memory of a process of its own, from before loading to the end of the measurement.
        predicted_mib: what the closed forms said of the peak before anything ran.
    """

    weights_mib: float
    kv_mib: float
    peak_mib: float
    predicted_mib: float


class Measurement(Record):
    """Everything measured of a candidate outside quality."""

    performance: Performance
    memory: Memory
