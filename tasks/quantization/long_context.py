"""A candidate at long context, where the type of the KV cache matters: one stream behind a prompt of each configured length.

At the short requests of the list a quantized cache changes little: weights are most of what a step reads and most of what is
resident. The cache grows with the context, so speed and memory are measured again where `quantize.long_context_tokens` says, each
length in a process of its own with a pool of just its size, beside the closed form of the cache and what it would be without GQA.
"""

from collections.abc import Sequence

from configs.engine import EngineSettings
from configs.load import ConfigError
from configs.schema import RequestSettings
from tasks.engines.protocol import EngineError
from tasks.models.checkpoint import Architecture
from tasks.profiling.cache_memory import allocated_cache_bytes, kv_factor
from tasks.release.candidate import Candidate
from tasks.release.measuring import measure_on
from tasks.release.workspace import Workspace
from tasks.store.record import Record

NEW_TOKENS = 16
MIB = 2**20
_SMALLEST_POOL_MIB = 16  # of SchedulerSettings


class LongContext(Record):
    """One candidate at one context length.

    Attributes:
        context_tokens: length of the prompt.
        ttft_ms: time to the first new token: the whole prompt is computed.
        prefill_tokens_per_s: prompt tokens over that time.
        decode_tokens_per_s: new tokens a second behind that prompt.
        peak_mib: growth of a process of its own, MiB.
        predicted_mib: what the closed forms say of that.
        kv_mib: closed form of the cache of this one sequence.
        kv_factor: heads of the cache over query heads; kv_mib / kv_factor is the cache without GQA.
    """

    context_tokens: int
    ttft_ms: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    peak_mib: float
    predicted_mib: float
    kv_mib: float
    kv_factor: float


def check_contexts(contexts: Sequence[int], architecture: Architecture) -> None:
    """Every length, with its new tokens, must be within what the model was made for.

    Raises:
        ConfigError: one is not.
    """
    for tokens in contexts:
        if tokens + NEW_TOKENS > architecture.context_tokens:
            raise ConfigError(
                f"quantize.long_context_tokens = {tokens}: with {NEW_TOKENS} new tokens it must be within the model's context of "
                f"{architecture.context_tokens}; use at most {architecture.context_tokens - NEW_TOKENS}"
            )


def at_long_context(workspace: Workspace, candidate: Candidate) -> tuple[LongContext, ...]:
    """Measure a candidate at every configured length, or recall what was measured.

    Raises:
        EngineError: it does not work at one of them, which the message names.
    """
    settings = workspace.config.quantize
    contexts = settings.long_context_tokens if settings is not None else ()
    return tuple(_measured(workspace, candidate, tokens) for tokens in contexts)


def long_requests(context_tokens: int) -> RequestSettings:
    """One stream behind a prompt of this length."""
    return RequestSettings(
        count=1, prompt_tokens=context_tokens, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS,
        one_stream_new_tokens=NEW_TOKENS, repeats=1,
    )  # fmt: skip


def long_engine(architecture: Architecture, engine: EngineSettings, context_tokens: int) -> EngineSettings:
    """The engine with one slot, and a pool that holds one such sequence."""
    cache_mib = -(-_cache_bytes(architecture, engine, context_tokens) // MIB) + 1
    scheduler = engine.scheduler.model_copy(
        update={"max_num_seqs": 1, "cache_mib": max(_SMALLEST_POOL_MIB, cache_mib)}
    )
    return engine.model_copy(update={"scheduler": scheduler})


def long_context_metrics(rows: Sequence[LongContext]) -> dict[str, float]:
    """Under the names of the MLflow contract."""
    metrics = {}
    for row in rows:
        where = f"context_{row.context_tokens}"
        metrics[f"perf/{where}/ttft_ms_p50"] = row.ttft_ms
        metrics[f"perf/{where}/prefill_tokens_per_s"] = row.prefill_tokens_per_s
        metrics[f"perf/{where}/decode_tokens_per_s"] = row.decode_tokens_per_s
        metrics[f"mem/{where}/peak_mib"] = row.peak_mib
        metrics[f"mem/{where}/predicted_mib"] = row.predicted_mib
        metrics[f"mem/{where}/kv_mib"] = row.kv_mib
    return metrics


def long_context_csv(rows: Sequence[tuple[Candidate, LongContext]]) -> str:
    """The table for the reader: the cache types of one format stand next to each other."""
    lines = [
        "candidate,kv_cache,context_tokens,ttft_ms,prefill_tokens_per_s,decode_tokens_per_s,peak_mib,predicted_mib,kv_mib,"
        "kv_factor,kv_mib_without_gqa"
    ]
    for candidate, row in rows:
        figures = (
            row.ttft_ms, row.prefill_tokens_per_s, row.decode_tokens_per_s, row.peak_mib, row.predicted_mib, row.kv_mib,
            row.kv_factor, row.kv_mib / row.kv_factor,
        )  # fmt: skip
        named = f'"{candidate.name}",{candidate.engine.kv_cache},{row.context_tokens}'
        lines.append(",".join([named, *(f"{figure:.3f}" for figure in figures)]))
    return "\n".join([*lines, ""])


def _measured(workspace: Workspace, candidate: Candidate, context_tokens: int) -> LongContext:
    architecture = workspace.architecture
    engine = long_engine(architecture, candidate.engine, context_tokens)
    at = candidate.model_copy(
        update={"name": f"{candidate.name}, {context_tokens} tokens of context", "engine": engine}
    )
    try:
        measured = measure_on(workspace, at, long_requests(context_tokens))
    except EngineError as error:
        raise EngineError(f"with {context_tokens} tokens of context: {error}") from error
    speed, memory = measured.performance, measured.memory
    return LongContext(
        context_tokens=context_tokens,
        ttft_ms=speed.ttft_ms.p50,
        prefill_tokens_per_s=speed.prefill_tokens_per_s,
        decode_tokens_per_s=speed.decode_tokens_per_s,
        peak_mib=memory.peak_mib,
        predicted_mib=memory.predicted_mib,
        kv_mib=_cache_bytes(architecture, engine, context_tokens) / MIB,
        kv_factor=kv_factor(architecture.heads, architecture.kv_heads),
    )


def _cache_bytes(architecture: Architecture, engine: EngineSettings, context_tokens: int) -> int:
    return allocated_cache_bytes(
        architecture,
        engine.engine,
        context_tokens=context_tokens + NEW_TOKENS,
        batch=1,
        kv_cache=engine.kv_cache,
    )
