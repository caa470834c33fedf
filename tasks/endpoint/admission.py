"""Who may enter: no more than the engine decodes and the queue holds, and nobody once the server is stopping."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from configs.serve import ServeLimits
from tasks.endpoint.api_error import ApiError


class Admission:
    """Counts the requests between their acceptance and their last byte.

    Attributes:
        inside: how many there are.
        stopping: nobody enters any more.
    """

    def __init__(self, limits: ServeLimits, slots: int) -> None:
        """Take the limits and the number of requests that the engine decodes together."""
        self.inside = 0
        self.stopping = False
        self._limits = limits
        self._most = slots + limits.queue_requests
        self._empty = asyncio.Event()
        self._empty.set()

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Hold a place.

        Raises:
            ApiError: 503, the queue is full or the server is stopping.
        """
        if self.stopping:
            raise self._busy("the server is stopping; ask another one", "stopping")
        if self.inside >= self._most:
            raise self._busy(
                f"{self.inside} requests are running or waiting, the most that limits.queue_requests allows",
                "queue_full",
            )
        self.inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self.inside -= 1
            if not self.inside:
                self._empty.set()

    async def drained(self) -> bool:
        """Let nobody in, and wait for those inside, at most `limits.grace_s`; whether all of them left."""
        self.stopping = True
        try:
            async with asyncio.timeout(self._limits.grace_s):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    def _busy(self, message: str, code: str) -> ApiError:
        return ApiError(
            503, message, kind="server_error", code=code, retry_after_s=self._limits.retry_after_s
        )
