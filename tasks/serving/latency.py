"""Speed of an open engine: time to first token, inter-token latency, prefill, decoding and throughput.

All times are the engine's own per-token times. "One stream" serves one request at a time; "throughput" hands
the engine the whole list at once. Figures of different machines or days are not comparable (see
`tasks.serving.interleaved`).
"""

import time
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

import numpy as np

from configs.engine import EngineSettings
from configs.schema import ProfileSettings, RequestSettings
from tasks.engines.protocol import Engine, EngineError, Generation, GenerationRequest
from tasks.release.candidate import Percentiles, Performance
from tasks.serving.requests import one_stream_requests, prompts, request_list
from tasks.store.record import Record

ONE_BY_ONE_SHARES = 8  # parts of the list where requests are served one after another


class LatencyRow(Record):
    """One cell of the profile's table: prompts of one length, submitted together. Rates are of the batch.

    Attributes:
        batch: requests in flight.
        context_tokens: prompt length of each.
        new_tokens: new tokens of each.
        ttft_ms: time to first token of each request.
        itl_ms: gaps between a request's tokens.
        prefill_tokens_per_s: prompt tokens over the time until the last request has its first token.
        decode_tokens_per_s: tokens that came after that, over the time they took.
    """

    batch: int
    context_tokens: int
    new_tokens: int
    ttft_ms: Percentiles
    itl_ms: Percentiles
    prefill_tokens_per_s: float
    decode_tokens_per_s: float


class KvCacheEffect(Record):
    """Decoding one stream with the KV cache, and with the whole prefix computed again for every token."""

    context_tokens: int
    new_tokens: int
    cached_tokens_per_s: float
    uncached_tokens_per_s: float
    speedup: float


def measure(
    engine: Engine, settings: RequestSettings, text_tokens: Sequence[int], *, load_s: float
) -> Performance:
    """Measure one candidate on the configured requests, after a warm-up.

    Rates are medians over `settings.repeats`; latencies are pooled over them. An engine that serves one
    request after another (`max_num_seqs` 1) is as fast with one waiting as with thirty, so each repeat takes
    its share of the list.

    Args:
        engine: open, otherwise idle.
        settings: the request list.
        text_tokens: token ids to cut prompts from.
        load_s: how long opening the engine took, seconds; the warm-up is added, because engines compile on
            first use.

    Raises:
        EngineError: the engine failed or made fewer tokens than asked for.
        ValueError: the text is too short.
    """
    load_s += warm_up(engine, text_tokens)
    streams = [
        generate(engine, [request])
        for request in one_stream_requests(settings, text_tokens, settings.repeats)
    ]
    requests = request_list(settings, text_tokens)
    shares = repeat_shares(engine.settings, requests, max(settings.repeats, ONE_BY_ONE_SHARES))[
        : settings.repeats
    ]
    first_s = [first.token_times_s[0] for (first,) in streams]
    decode_runs = tuple(decode_rate(stream) for stream in streams)
    throughput_runs = tuple(throughput(generate(engine, share)) for share in shares)
    return Performance(
        prefill_tokens_per_s=settings.prompt_tokens / median(first_s),
        decode_tokens_per_s=median(decode_runs),
        throughput_tokens_per_s=median(throughput_runs),
        ttft_ms=percentiles_ms(first_s),
        itl_ms=percentiles_ms([gap for stream in streams for gap in token_gaps_s(stream)]),
        load_s=load_s,
        decode_runs=decode_runs,
        throughput_runs=throughput_runs,
    )


def table_settings(baseline: EngineSettings, profile: ProfileSettings) -> EngineSettings:
    """The baseline with room for the largest batch of the table, so that no request waits for a slot."""
    slots = max(baseline.scheduler.max_num_seqs, *profile.batch_sizes)
    return baseline.model_copy(
        update={"scheduler": baseline.scheduler.model_copy(update={"max_num_seqs": slots})}
    )


def latency_table(
    engine: Engine, profile: ProfileSettings, text_tokens: Sequence[int]
) -> tuple[LatencyRow, ...]:
    """Measure every batch size at every context length once, after a warm-up.

    Args:
        engine: opened with `table_settings`.
        profile: batch sizes, context lengths and new tokens.
        text_tokens: token ids to cut prompts from.

    Raises:
        EngineError: the engine failed or made fewer tokens than asked for.
        ValueError: the text is too short, or a batch does not fit the engine's `max_num_seqs`.
    """
    slots = engine.settings.scheduler.max_num_seqs
    if slots < max(profile.batch_sizes):
        raise ValueError(
            f"profile.batch_sizes holds {max(profile.batch_sizes)}, the engine's scheduler.max_num_seqs is "
            f"{slots}: requests would wait; open the engine with table_settings"
        )
    warm_up(engine, text_tokens)
    return tuple(
        _latency_row(engine, batch, context, profile.new_tokens, text_tokens)
        for context in profile.context_tokens
        for batch in profile.batch_sizes
    )


def kv_cache_effect(
    cached: Engine, uncached: Engine, profile: ProfileSettings, text_tokens: Sequence[int]
) -> tuple[KvCacheEffect, ...]:
    """Decode one stream at every context length with and without the KV cache, one right after the other.

    Raises:
        EngineError: an engine failed or made fewer tokens than asked for.
        ValueError: the text is too short.
    """
    for engine in (cached, uncached):
        warm_up(engine, text_tokens)
    return tuple(
        _cache_effect(cached, uncached, context, profile.new_tokens, text_tokens)
        for context in profile.context_tokens
    )


def warm_up(engine: Engine, text_tokens: Sequence[int]) -> float:
    """Serve two short requests, so that lazy compilation is not measured; return the seconds it took."""
    began_s = time.perf_counter()
    generate(
        engine,
        [GenerationRequest(prompt, 4, ignore_eos=True) for prompt in prompts(text_tokens, 2, 4, "warm-up")],
    )
    return time.perf_counter() - began_s


def generate(engine: Engine, requests: Sequence[GenerationRequest]) -> list[Generation]:
    """Serve requests that ignore the end of sequence, and check that all their tokens came.

    Raises:
        EngineError: a request got another number of tokens or times than it asked for, or times that run
            backwards.
    """
    generations = engine.generate(requests)
    if len(generations) != len(requests):
        raise EngineError(f"{engine.settings.engine} answered {len(generations)} of {len(requests)} requests")
    for request, generation in zip(requests, generations, strict=True):
        times = generation.token_times_s
        if not len(generation.tokens) == len(times) == request.max_new_tokens:
            raise EngineError(
                f"{engine.settings.engine} made {len(generation.tokens)} tokens with {len(times)} times; "
                f"{request.max_new_tokens} were asked for without regard to the end of sequence"
            )
        if times[0] <= 0 or any(after < before for before, after in pairwise(times)):
            raise EngineError(
                f"{engine.settings.engine} reported token times that do not run forward: {times[:4]}"
            )
    return generations


def repeat_shares(
    settings: EngineSettings, requests: Sequence[GenerationRequest], repeats: int
) -> list[list[GenerationRequest]]:
    """What each repeat serves: the list, or its share of it where requests are served one after another."""
    if settings.scheduler.max_num_seqs > 1:
        return [list(requests)] * repeats
    return [list(requests[repeat % len(requests) :: repeats]) for repeat in range(repeats)]


def throughput(generations: Sequence[Generation]) -> float:
    """New tokens a second from submission to the last token of the last request."""
    tokens = sum(len(generation.tokens) for generation in generations)
    return tokens / max(generation.token_times_s[-1] for generation in generations)


def decode_rate(generations: Sequence[Generation]) -> float:
    """Tokens a second after every request has its first token."""
    started = max(generation.token_times_s[0] for generation in generations)
    later = [time for generation in generations for time in generation.token_times_s if time > started]
    if not later:
        raise EngineError("all tokens were reported at one time: decoding cannot be told from prefill")
    return len(later) / (max(later) - started)


def token_gaps_s(generations: Sequence[Generation]) -> list[float]:
    """Seconds between neighbouring tokens of each request."""
    return [float(gap) for generation in generations for gap in np.diff(generation.token_times_s)]


def percentiles_ms(seconds: Sequence[float]) -> Percentiles:
    """p50, p95 and p99 of durations, in milliseconds, linear between neighbours."""
    p50, p95, p99 = (float(value) for value in np.percentile(np.asarray(seconds) * 1e3, (50, 95, 99)))
    return Percentiles(p50=p50, p95=p95, p99=p99)


def _latency_row(
    engine: Engine, batch: int, context: int, new_tokens: int, text_tokens: Sequence[int]
) -> LatencyRow:
    cut = prompts(text_tokens, batch, context, f"table {batch} {context}")
    generations = generate(engine, [GenerationRequest(prompt, new_tokens, ignore_eos=True) for prompt in cut])
    first_s = [generation.token_times_s[0] for generation in generations]
    return LatencyRow(
        batch=batch,
        context_tokens=context,
        new_tokens=new_tokens,
        ttft_ms=percentiles_ms(first_s),
        itl_ms=percentiles_ms(token_gaps_s(generations)),
        prefill_tokens_per_s=batch * context / max(first_s),
        decode_tokens_per_s=decode_rate(generations),
    )


def _cache_effect(
    cached: Engine, uncached: Engine, context: int, new_tokens: int, text_tokens: Sequence[int]
) -> KvCacheEffect:
    (prompt,) = prompts(text_tokens, 1, context, f"cache {context}")
    request = GenerationRequest(prompt, new_tokens, ignore_eos=True)
    with_cache, without = (decode_rate(generate(engine, [request])) for engine in (cached, uncached))
    return KvCacheEffect(
        context_tokens=context,
        new_tokens=new_tokens,
        cached_tokens_per_s=with_cache,
        uncached_tokens_per_s=without,
        speedup=with_cache / without,
    )
