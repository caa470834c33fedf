"""Which stack to take: precision, fine-tuning, serving and quality guard, each with its reason.

Where a stage has measured something, the measurement speaks. Where nothing was measured, a rule of thumb
does, written for one 16 GiB GPU and models of 7 billion parameters; here its memory threshold moves with the
size of the model, so that a small model on a small machine is treated as a large one on a large machine.
"""

from collections.abc import Sequence
from typing import Literal

from tasks.release.stage_result import StageName, StageResult
from tasks.store.record import Record

_TIGHT_BYTES_A_PARAMETER = 16 * 2**30 / 7e9  # 2.45: 16-bit weights, and a fifth of them for cache and scratch
_TIGHT_LATENCY_MS = 120.0
_USEFUL_ACCEPTANCE = 0.55

Aspect = Literal["precision", "fine-tuning", "serving", "quality guard"]


class Recommendation(Record):
    """One choice and why.

    Attributes:
        aspect: what is chosen.
        choice: what to take.
        reason: one line.
        source: whether a measurement or a rule of thumb says so.
    """

    aspect: Aspect
    choice: str
    reason: str
    source: Literal["measured", "rule of thumb"]


def recommend(
    *,
    parameters: int,
    memory_limit_bytes: int,
    latency_ms: float | None,
    quality_priority: Literal["high", "normal"],
    draft_acceptance: float = 0.5,
    results: Sequence[StageResult] = (),
) -> tuple[Recommendation, ...]:
    """Recommend the four parts of the stack.

    Args:
        parameters: of the model.
        memory_limit_bytes: what serving may take: the machine's memory, or the goal where that is lower.
        latency_ms: largest latency a user may feel; None: no limit.
        quality_priority: whether answers are worth dear checks.
        draft_acceptance: expected or measured chance that a drafted token is accepted.
        results: stages that have run, of this model.
    """
    by_stage = {result.stage: result for result in results}
    return (
        _measured_precision(by_stage) or _precision(parameters, memory_limit_bytes),
        _measured_tuning(by_stage) or _tuning(parameters, memory_limit_bytes),
        _measured_serving(by_stage) or _serving(latency_ms, draft_acceptance),
        _measured_guard(by_stage) or _guard(quality_priority),
    )


def _measured_precision(results: dict[StageName, StageResult]) -> Recommendation | None:
    quantized = results.get("quantize")
    if quantized is None or quantized.verdict in ("SKIPPED", "ERROR") or quantized.proposal is None:
        return None
    tried = quantized.proposal
    choice = f"{tried.weights} weights, {tried.engine.kv_cache} KV cache on {tried.engine.engine}"
    if not quantized.kept:
        choice = "keep the source's precision"
    return _measured("precision", choice, quantized.reason)


def _precision(parameters: int, memory_limit_bytes: int) -> Recommendation:
    tight, reason = _memory_is_tight(parameters, memory_limit_bytes)
    choice = (
        "INT4 or INT8 weights, quantized KV cache"
        if tight
        else "INT8 weights, or 16 bits where quality counts"
    )
    return _rule("precision", choice, reason)


def _measured_tuning(results: dict[StageName, StageResult]) -> Recommendation | None:
    adapted = results.get("adapt")
    if adapted is None or adapted.verdict in ("SKIPPED", "ERROR") or adapted.proposal is None:
        return None
    return _measured(
        "fine-tuning", adapted.proposal.name if adapted.kept else "none of the methods tried", adapted.reason
    )


def _tuning(parameters: int, memory_limit_bytes: int) -> Recommendation:
    tight, reason = _memory_is_tight(parameters, memory_limit_bytes)
    return _rule("fine-tuning", "QLoRA" if tight else "LoRA, or full fine-tuning where required", reason)


def _measured_serving(results: dict[StageName, StageResult]) -> Recommendation | None:
    batched = results.get("batching")
    if batched is None or batched.verdict in ("SKIPPED", "ERROR") or batched.proposal is None:
        return None
    if not batched.kept:
        return _measured("serving", "keep the scheduler settings of the stage before", batched.reason)
    scheduler = batched.proposal.engine.scheduler
    slots, tokens = scheduler.max_num_seqs, scheduler.max_num_batched_tokens
    choice = f"continuous batching of {slots} requests, {tokens} tokens a step"
    return _measured("serving", choice, batched.reason)


def _serving(latency_ms: float | None, draft_acceptance: float) -> Recommendation:
    asked = "no latency goal" if latency_ms is None else f"latency goal {latency_ms:g} ms"
    reason = (
        f"{asked}, draft acceptance {draft_acceptance:g}; speculation from below {_TIGHT_LATENCY_MS:g} ms "
        f"and {_USEFUL_ACCEPTANCE:g}"
    )
    tight = latency_ms is not None and latency_ms < _TIGHT_LATENCY_MS
    if tight and draft_acceptance >= _USEFUL_ACCEPTANCE:
        return _rule("serving", "continuous batching and speculative decoding", reason)
    return _rule("serving", "continuous batching first, speculative decoding optional", reason)


def _measured_guard(results: dict[StageName, StageResult]) -> Recommendation | None:
    """What passed the last gate still changed some answers; those are what people should see."""
    judged = [result.gate for result in results.values() if result.kept and result.gate is not None]
    flips = [gate for gate in judged if gate.verdict == "PASS" and gate.flip_rate is not None]
    if not flips:
        return None
    choice = "paired non-inferiority gate at every release, people look at the answers that changed"
    return _measured(
        "quality guard", choice, f"{flips[-1].flip_rate:.1%} of the answers changed: {flips[-1].reason}"
    )


def _guard(quality_priority: Literal["high", "normal"]) -> Recommendation:
    reason = f"quality priority {quality_priority}"
    if quality_priority == "high":
        choice = (
            "judge model with rubric and bias checks, besides rules; people look at samples of every release"
        )
        return _rule("quality guard", choice, reason)
    return _rule("quality guard", "rule-based evaluation, people look at samples now and then", reason)


def _memory_is_tight(parameters: int, memory_limit_bytes: int) -> tuple[bool, str]:
    threshold = parameters * _TIGHT_BYTES_A_PARAMETER
    tight = memory_limit_bytes < threshold
    return tight, (
        f"{memory_limit_bytes / 2**30:.1f} GiB may be used, {'below' if tight else 'at least'} the "
        f"{threshold / 2**30:.1f} GiB {parameters / 1e9:.3g} B parameters want at 16 bits with their cache"
    )


def _measured(aspect: Aspect, choice: str, reason: str) -> Recommendation:
    return Recommendation(aspect=aspect, choice=choice, reason=reason, source="measured")


def _rule(aspect: Aspect, choice: str, reason: str) -> Recommendation:
    return Recommendation(aspect=aspect, choice=choice, reason=reason, source="rule of thumb")
