"""One answer, piece by piece: the engine's tokens as text, cut at a stop string, within the time limit."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from tasks.endpoint.api_error import ApiError
from tasks.endpoint.detokenize import Detokenizer
from tasks.endpoint.metrics import Metrics
from tasks.endpoint.openai_api import FinishReason
from tasks.endpoint.prompt_text import PromptText
from tasks.endpoint.stop_strings import StopStrings
from tasks.endpoint.streams import Stream, Streams
from tasks.engines.streaming import Progress, StreamRequest


@dataclass(frozen=True)
class Piece:
    """Text that is certain, and the tokens that were made for it.

    Attributes:
        text: may be empty: a token may hold a part of a character, or begin a stop string.
        tokens: made since the piece before.
        finish_reason: of the last piece only.
    """

    text: str
    tokens: int
    finish_reason: FinishReason | None = None


async def answer(
    streams: Streams,
    request: StreamRequest,
    text: PromptText,
    *,
    stops: Sequence[str],
    deadline: float,
    metrics: Metrics,
) -> AsyncGenerator[Piece, None]:
    """Submit a request and yield its pieces; closing the iterator frees what it holds in the engine.

    Args:
        streams: the requests in flight.
        request: what the engine is asked.
        text: decodes.
        stops: strings before which the text ends.
        deadline: time of the event loop's clock after which the request is given up.
        metrics: what is counted.

    Raises:
        ApiError: 504 past the deadline, 503 when the engine died, 500 when it gave the request up.
    """
    detokenizer, watch = Detokenizer(text.decode), StopStrings(stops)
    last = time.perf_counter()
    metrics.prompt_tokens.inc(len(request.generation.prompt))
    with streams.open(request) as stream:
        first = True
        while True:
            progress = await _next(stream, deadline)
            now = time.perf_counter()
            metrics.generated_tokens.inc(len(progress.tokens))
            (metrics.ttft_s if first else metrics.itl_s).observe(now - last)
            first, last = False, now
            written = watch.feed(detokenizer.feed(progress.tokens))
            if progress.end and not watch.matched:
                written += watch.feed(detokenizer.flush())
            if watch.matched:
                yield Piece(written, len(progress.tokens), "stop")
                return
            if progress.end == "stop" or progress.end == "length":
                yield Piece(written + watch.flush(), len(progress.tokens), progress.end)
                return
            yield Piece(written, len(progress.tokens))


async def _next(stream: Stream, deadline: float) -> Progress:
    try:
        async with asyncio.timeout_at(deadline):
            progress = await stream.next()
    except TimeoutError:
        raise ApiError(
            504,
            "the request took longer than limits.request_s; ask for fewer tokens",
            kind="timeout_error",
            code="timeout",
        ) from None
    if progress.end == "rejected":
        raise ApiError(
            500,
            "the engine gave this request up: its KV cache does not hold it; ask for fewer tokens, or serve a release "
            "whose recipe has a larger scheduler.cache_mib",
            kind="server_error",
        )
    return progress
