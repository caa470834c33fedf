"""The listening process: it stops in order, and it ends with its engine."""

import asyncio
import signal
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from configs.load import ConfigError
from tasks.endpoint.app import Endpoint
from tasks.engines.protocol import EngineError

_LAST_BYTES_S = 5  # for clients that read slowly, after the last request has ended


class EndpointServer(uvicorn.Server):
    """uvicorn, but a first signal lets running requests finish while new ones get a 503; a second ends at once."""

    def __init__(self, app: FastAPI, endpoint: Endpoint) -> None:
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=_LAST_BYTES_S,
        )
        super().__init__(config)
        self._endpoint = endpoint
        self._stopping: asyncio.Task[None] | None = None

    async def main_loop(self) -> None:
        """Serve, from the first request to the last."""
        self._endpoint.streams.start()
        watch = asyncio.create_task(self._end_with_the_engine())
        await super().main_loop()
        watch.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal; what uvicorn would do at once waits for those inside."""
        if self._stopping is not None or not self.started:
            self.should_exit = self.force_exit = True
            return
        self._stopping = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        if not await self._endpoint.admission.drained():
            self._endpoint.streams.abort("the server was told to stop, and limits.grace_s is over")
        self.should_exit = True

    async def _end_with_the_engine(self) -> None:
        await self._endpoint.streams.gone.wait()
        self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """Bind, before anything that takes long.

    Raises:
        ConfigError: the address is taken or not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"port = {port}: cannot listen on {host}: {error}; choose another host or port"
        ) from error


def run_server(app: FastAPI, endpoint: Endpoint, listening: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish what runs.

    Raises:
        EngineError: the engine died; who started this server should start it again.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    EndpointServer(app, endpoint).run(sockets=[listening])
    if endpoint.streams.failure is not None:
        raise EngineError(f"the engine stopped while serving: {endpoint.streams.failure}")
