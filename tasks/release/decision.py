"""The rollout's decisions, as pure functions on records: goals, the best candidate, what runs next, the verdict of the whole."""

from collections.abc import Sequence
from typing import Literal

from configs.quality import Margins
from configs.schema import Goals
from configs.training import AdaptSettings
from tasks.release.candidate import Candidate, Measurement
from tasks.release.stage_result import CandidateResult, StageResult

AdaptationPurpose = Literal["data", "recovery"]
RolloutVerdict = Literal["PASS", "FAIL", "INCONCLUSIVE", "ERROR"]


def missed_goals(goals: Goals, measured: Measurement, baseline: Measurement) -> tuple[str, ...]:
    """Goals that a measurement misses, each as "name: value against limit". Empty when all hold."""
    speed, memory, source = measured.performance, measured.memory, baseline.performance
    upper = (
        ("max_weights_mib", memory.weights_mib, goals.max_weights_mib),
        ("max_peak_mib", memory.peak_mib, goals.max_peak_mib),
        ("max_ttft_ms_p95", speed.ttft_ms.p95, goals.max_ttft_ms_p95),
        ("max_itl_ms_p95", speed.itl_ms.p95, goals.max_itl_ms_p95),
    )
    lower = (
        (
            "min_decode_speedup",
            speed.decode_tokens_per_s / source.decode_tokens_per_s,
            goals.min_decode_speedup,
        ),
        (
            "min_throughput_speedup",
            speed.throughput_tokens_per_s / source.throughput_tokens_per_s,
            goals.min_throughput_speedup,
        ),
    )
    return tuple(
        [
            f"{name}: {value:.4g} is above {limit:g}"
            for name, value, limit in upper
            if limit is not None and value > limit
        ]
        + [
            f"{name}: {value:.4g} is below {limit:g}"
            for name, value, limit in lower
            if limit is not None and value < limit
        ]
    )


def worth_judging(
    results: Sequence[CandidateResult], goals: Goals, margins: Margins, baseline: Measurement
) -> tuple[CandidateResult, ...]:
    """The candidates to judge, best first: the fastest that meets the goals and whose screen is within the margins.

    Where none meets them, goals give way before quality: a gate can only say no to what is proposed. Where no screen is within the
    margins, the smallest divergence alone is judged, so that the report says how far away the space is.
    """
    usable = [result for result in results if result.measurement is not None]
    good = [result for result in usable if _within(result, margins)]
    best = [r for r in good if not missed_goals(goals, _measured(r), baseline)] or good
    if best:
        return tuple(sorted(best, key=lambda r: _measured(r).performance.mean_tokens_per_s, reverse=True))
    return tuple(sorted(usable, key=lambda result: result.screen["kl_nats"])[:1])


def challenger(
    results: Sequence[CandidateResult], release: Candidate, goals: Goals, baseline: Measurement
) -> CandidateResult | None:
    """The best candidate that meets the goals and is not the release: the least divergent, of those that could be recovered first."""
    others = [
        result
        for result in results
        if result.measurement is not None
        and result.candidate != release
        and not missed_goals(goals, result.measurement, baseline)
    ]
    return min(others, key=lambda each: (_is_lost(each), each.screen["kl_nats"]), default=None)


def _is_lost(result: CandidateResult) -> bool:
    return result.candidate is None or result.candidate.format.recovery_objection is not None


def adaptation_purpose(
    settings: AdaptSettings | None, release_misses: Sequence[str], challenger: Candidate | None
) -> tuple[AdaptationPurpose | None, str]:
    """What the adapt stage is for, None for nothing, and the reason.

    Nothing is recovered for a challenger that has no scales to train.
    """
    if settings is None:
        return None, "the configuration has no adapt section"
    why = "nothing has to be recovered"
    if release_misses and challenger is not None and settings.recovery is not None:
        objection = challenger.format.recovery_objection
        if objection is None:
            return (
                "recovery",
                f"the release misses a goal ({release_misses[0]}) and a challenger meets all goals",
            )
        why = f"of {challenger.name}, which meets all goals, nothing can be: {objection}"
    if settings.data is not None:
        return "data", "the configuration gives data"
    return None, f"no data is given and {why}"


def overall(
    stages: Sequence[StageResult], release_changed: bool, missed: Sequence[str]
) -> tuple[RolloutVerdict, str]:
    """The verdict of the rollout, fail closed.

    An ERROR anywhere is an ERROR. PASS needs a release other than the source, every stage of which passed, and all goals. Where
    nothing was kept the worst of the stages' verdicts stands.
    """
    for stage in stages:
        if stage.verdict == "ERROR":
            return "ERROR", f"{stage.stage}: {stage.reason}"
    if release_changed:
        return (
            ("FAIL", "; ".join(missed)) if missed else ("PASS", "within every margin, and every goal is met")
        )
    for stage in sorted(stages, key=lambda s: s.verdict != "FAIL"):
        if stage.verdict in ("FAIL", "INCONCLUSIVE"):
            return stage.verdict, f"{stage.stage}: {stage.reason}"
    return (
        ("FAIL", "; ".join(missed))
        if missed
        else ("PASS", "nothing was proposed; the source meets every goal")
    )


def _within(result: CandidateResult, margins: Margins) -> bool:
    limits = {"kl_nats": margins.kl_nats, "perplexity_delta_fraction": margins.perplexity_fraction}
    return all(result.screen[name] <= limit for name, limit in limits.items() if limit is not None)


def _measured(result: CandidateResult) -> Measurement:
    if result.measurement is None:
        raise ValueError(f"{result.name} was never measured")
    return result.measurement
