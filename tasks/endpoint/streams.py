"""The requests in flight, on the server's event loop: who waits for which of the engine's tokens."""

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import contextmanager

from tasks.endpoint.api_error import ApiError
from tasks.endpoint.engine_process import Cancel, EngineLink, Submit
from tasks.engines.streaming import Progress, StreamRequest


class EngineGone(ApiError):
    """No token follows: the engine died, or the server stops."""

    def __init__(self, reason: str, retry_after_s: int) -> None:
        """Say why; another server may answer."""
        super().__init__(503, reason, kind="server_error", code="engine_gone", retry_after_s=retry_after_s)


class Stream:
    """The tokens of one request."""

    def __init__(self) -> None:
        self._arrived: asyncio.Queue[Progress | EngineGone] = asyncio.Queue()
        self.started = False
        self.ended = False

    async def next(self) -> Progress:
        """The next progress.

        Raises:
            EngineGone: there will be none.
        """
        arrived = await self._arrived.get()
        if isinstance(arrived, EngineGone):
            self.ended = True
            raise arrived
        return arrived

    def put(self, arrived: Progress | EngineGone) -> None:
        """Called by `Streams`."""
        self.started = True
        self.ended = isinstance(arrived, Progress) and arrived.end is not None
        self._arrived.put_nowait(arrived)


class Streams:
    """All requests in flight; everything but `start`'s callbacks runs on the event loop.

    Attributes:
        failure: why the engine is gone; None while it lives.
        gone: set when the engine died.
    """

    def __init__(self, link: EngineLink, retry_after_s: int) -> None:
        """Take an open engine."""
        self.failure: str | None = None
        self.gone = asyncio.Event()
        self._link = link
        self._retry_after_s = retry_after_s
        self._ids = itertools.count()
        self._streams: dict[int, Stream] = {}

    def start(self) -> None:
        """Listen to the engine from the running event loop."""
        loop = asyncio.get_running_loop()
        self._link.start(
            lambda made: _on_loop(loop, self._deliver, made), lambda reason: _on_loop(loop, self._die, reason)
        )

    @contextmanager
    def open(self, request: StreamRequest) -> Iterator[Stream]:
        """Submit a request; leaving the block before its end frees what it holds in the engine.

        Raises:
            EngineGone: the engine is dead.
        """
        if self.failure is not None:
            raise EngineGone(self.failure, self._retry_after_s)
        key, stream = next(self._ids), Stream()
        self._streams[key] = stream
        self._link.send(Submit(key, request))
        try:
            yield stream
        finally:
            del self._streams[key]
            if not stream.ended:
                self._link.send(Cancel(key))

    @property
    def running(self) -> int:
        """Requests that have a token."""
        return sum(stream.started for stream in self._streams.values())

    @property
    def waiting(self) -> int:
        """Requests that have none yet."""
        return len(self._streams) - self.running

    def _deliver(self, made: list[Progress]) -> None:
        for progress in made:
            if stream := self._streams.get(progress.request_id):
                stream.put(progress)

    def abort(self, reason: str) -> None:
        """End every request with a 503."""
        for stream in self._streams.values():
            stream.put(EngineGone(reason, self._retry_after_s))

    def _die(self, reason: str) -> None:
        self.failure = reason
        self.gone.set()
        self.abort(reason)


def _on_loop(loop: asyncio.AbstractEventLoop, call: object, argument: object) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(call, argument)  # type: ignore[arg-type]
