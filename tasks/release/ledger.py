"""The ledger: what each kept stage changed, measured in one interleaved run so that the rows add up.

Speeds are log-ratios: a row's is the mean over the slots of ln(stage) - ln(stage before), so their sum is
exactly the mean of ln(release) - ln(source). Slot i of every candidate was measured next to slot i of the
others; it is the block of the pairing. Memory and quality telescope because every row is a difference of two
levels against the same source.
"""

import math
from collections.abc import Mapping, Sequence

from tasks.quality.intervals import ratio_interval
from tasks.quality.verdict import GateVerdict
from tasks.release.candidate import Memory
from tasks.store.record import Record


class Speeds(Record):
    """Tokens a second of every candidate, slot by slot, from one interleaved run; equally many slots each."""

    tokens_per_s: dict[str, tuple[float, ...]]


class QualityLevel(Record):
    """Quality against the source; None where it was not judged. The source itself is (0, 0, 0).

    Attributes:
        kl_nats: mean KL divergence, nats a token.
        perplexity_fraction: relative change of perplexity.
        accuracy: change of accuracy, mean over the tasks, fraction of the items.
    """

    kl_nats: float | None = None
    perplexity_fraction: float | None = None
    accuracy: float | None = None


SOURCE_QUALITY = QualityLevel(kl_nats=0.0, perplexity_fraction=0.0, accuracy=0.0)


class LedgerPoint(Record):
    """One kept candidate of the chain; the first point is the source on the baseline engine."""

    stage: str
    candidate: str
    memory: Memory
    quality: QualityLevel
    seconds: float


class LedgerRow(Record):
    """What one stage changed against the stage before.

    Attributes:
        stage: which; "total" for release against source.
        candidate: the candidate after it.
        decode_log_ratio: natural logarithm of the one-stream speed ratio.
        throughput_log_ratio: of the ratio with all requests in flight.
        decode_ci: two-sided interval of decode_log_ratio.
        throughput_ci: two-sided interval of throughput_log_ratio.
        weights_mib_delta: change of the weights.
        peak_mib_delta: change of the peak.
        quality: change of each level; a level that was not judged changes nothing and is None.
        seconds: wall time the stage took.
    """

    stage: str
    candidate: str
    decode_log_ratio: float
    throughput_log_ratio: float
    decode_ci: tuple[float, float]
    throughput_ci: tuple[float, float]
    weights_mib_delta: float
    peak_mib_delta: float
    quality: QualityLevel
    seconds: float


class Ledger(Record):
    """All rows, the total, and how they were measured."""

    source: str
    rows: tuple[LedgerRow, ...]
    total: LedgerRow
    slots: int
    confidence: float


def quality_level(gate: GateVerdict) -> QualityLevel:
    """What a gate measured: the worst KL, mean perplexity ratio (geometric), mean accuracy change."""
    divergences = [metric.candidate for metric in gate.metrics if metric.metric == "kl"]
    ratios = [metric.loss for metric in gate.metrics if metric.metric == "perplexity"]
    losses = [m.loss for m in gate.metrics if m.metric not in ("kl", "flips", "perplexity")]
    return QualityLevel(
        kl_nats=max(divergences, default=None),
        perplexity_fraction=math.expm1(math.fsum(ratios) / len(ratios)) if ratios else None,
        accuracy=-math.fsum(losses) / len(losses) if losses else None,
    )


def build_ledger(
    chain: Sequence[LedgerPoint], decode: Speeds, throughput: Speeds, confidence: float
) -> Ledger:
    """Rows for every point after the first, and the total.

    Raises:
        TooFewClusters: fewer than 8 slots.
        ValueError: the chain is empty, a candidate was not measured, slots differ, or a speed is not
            positive.
    """
    if not chain:
        raise ValueError("the ledger needs the source and every kept stage; the chain is empty")
    slots = {_checked(speeds.tokens_per_s, chain) for speeds in (decode, throughput)}
    if len(slots) != 1:
        raise ValueError(f"decode and throughput have different numbers of slots: {sorted(slots)}")
    levels = _known_levels(chain)
    rows = [
        _row(before, after, _difference(level, next_level, [after]), decode, throughput, confidence)
        for before, after, level, next_level in zip(chain, chain[1:], levels, levels[1:], strict=False)
    ]
    quality = _difference(levels[0], levels[-1], chain[1:])
    total = _row(chain[0], chain[-1], quality, decode, throughput, confidence)
    total = total.model_copy(update={"stage": "total", "seconds": math.fsum(row.seconds for row in rows)})
    return Ledger(
        source=chain[0].candidate, rows=tuple(rows), total=total, slots=slots.pop(), confidence=confidence
    )


def _checked(speeds: Mapping[str, tuple[float, ...]], chain: Sequence[LedgerPoint]) -> int:
    """Number of slots."""
    if missing := sorted({point.candidate for point in chain} - speeds.keys()):
        raise ValueError(f"the interleaved run did not measure {', '.join(missing)}")
    lengths = {len(speeds[point.candidate]) for point in chain}
    if len(lengths) != 1:
        raise ValueError(f"every candidate needs the same number of slots; got {sorted(lengths)}")
    if slow := [point.candidate for point in chain if min(speeds[point.candidate]) <= 0]:
        raise ValueError(f"speed of {slow[0]} is not positive in some slot; measure again")
    return lengths.pop()


def _row(
    before: LedgerPoint,
    after: LedgerPoint,
    quality: QualityLevel,
    decode: Speeds,
    throughput: Speeds,
    confidence: float,
) -> LedgerRow:
    decode_log_ratio, decode_ci = _log_ratio(decode.tokens_per_s, before, after, confidence)
    throughput_log_ratio, throughput_ci = _log_ratio(throughput.tokens_per_s, before, after, confidence)
    return LedgerRow(
        stage=after.stage,
        candidate=after.candidate,
        decode_log_ratio=decode_log_ratio,
        throughput_log_ratio=throughput_log_ratio,
        decode_ci=decode_ci,
        throughput_ci=throughput_ci,
        weights_mib_delta=after.memory.weights_mib - before.memory.weights_mib,
        peak_mib_delta=after.memory.peak_mib - before.memory.peak_mib,
        quality=quality,
        seconds=after.seconds,
    )


def _log_ratio(
    speeds: Mapping[str, tuple[float, ...]], before: LedgerPoint, after: LedgerPoint, confidence: float
) -> tuple[float, tuple[float, float]]:
    """Mean over the slots, and its interval. A candidate against itself is 0 without any doubt."""
    if before.candidate == after.candidate:
        return 0.0, (0.0, 0.0)
    logs = [
        math.log(b) - math.log(a)
        for a, b in zip(speeds[before.candidate], speeds[after.candidate], strict=True)
    ]
    interval = ratio_interval(logs, confidence)
    return math.fsum(logs) / len(logs), (interval.low, interval.high)


def _known_levels(chain: Sequence[LedgerPoint]) -> list[QualityLevel]:
    """Each point's levels; what was not judged keeps its last level, so that the next row still adds up."""
    levels, known = [], SOURCE_QUALITY
    for point in chain:
        judged = {name: value for name, value in point.quality if value is not None}
        known = known.model_copy(update=judged)
        levels.append(known)
    return levels


def _difference(before: QualityLevel, after: QualityLevel, judged: Sequence[LedgerPoint]) -> QualityLevel:
    """Change of each level; None where none of the `judged` points has it."""
    return QualityLevel(
        **{
            name: value - getattr(before, name)
            for name, value in after
            if any(getattr(point.quality, name) is not None for point in judged)
        }
    )
