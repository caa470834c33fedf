"""The engine in a process of its own, and its two ends of the pipe.

OpenVINO GenAI's `step` holds Python's global lock: in a thread beside the server, every byte sent would wait for a
step. And a library that aborts takes this process with it, not the one that has to tell the clients. Whichever end
dies, the other reads the end of the pipe.
"""

import multiprocessing
import queue
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

from configs.engine import EngineSettings
from tasks.engines.protocol import EngineError
from tasks.engines.streaming import Progress, StreamingEngine, StreamRequest
from tasks.store.artifact import Artifact

_EXIT_S = 10.0  # a process that closed its pipe has an exit code soon


@dataclass(frozen=True)
class Submit:
    """Queue a request."""

    request_id: int
    request: StreamRequest


@dataclass(frozen=True)
class Cancel:
    """Free what a request holds."""

    request_id: int


@dataclass(frozen=True)
class Opened:
    """The engine is open.

    Attributes:
        samples: whether it draws at a temperature above 0.
        sequence_tokens: the longest prompt with its completion.
        slots: requests decoded together, at most.
    """

    samples: bool
    sequence_tokens: int
    slots: int


@dataclass(frozen=True)
class Failed:
    """The engine failed, and why; nothing follows."""

    message: str


Command = Submit | Cancel
Deliver = Callable[[list[Progress]], None]
Died = Callable[[str], None]


class EngineLink(Protocol):
    """An open engine somewhere else. Its calls come from one thread, its answers from another."""

    opened: Opened

    def start(self, deliver: Deliver, died: Died) -> None:
        """Begin to pass on what the engine says."""
        ...

    def send(self, command: Command) -> None:
        """Pass a command on; never blocks."""
        ...

    def stop(self) -> None:
        """End the engine, whatever it is doing."""
        ...


def step_engine(
    engine: StreamingEngine, receive: Callable[[bool], Command | None], send: Callable[[list[Progress]], None]
) -> None:
    """The engine's loop: all commands that are there, then one step; sleeps while there is nothing to do.

    Args:
        engine: open.
        receive: the next command; None when there is none now. True: wait for one.
        send: takes what a step made.

    Raises:
        EOFError: `receive` says that nobody commands any more.
        EngineError: the engine failed.
    """
    while True:
        command = receive(not engine.busy)
        while command is not None:
            if isinstance(command, Submit):
                engine.submit(command.request_id, command.request)
            else:
                engine.cancel(command.request_id)
            command = receive(False)
        if engine.busy and (made := engine.step()):
            send(made)


class EngineProcess:
    """The server's end: an engine that runs in a child process."""

    def __init__(
        self,
        artifact: Artifact,
        settings: EngineSettings,
        *,
        sequence_tokens: int,
        draft: Artifact | None = None,
        adapters: Mapping[str, Path] = {},
    ) -> None:
        """Start the child and wait until its engine is open.

        Raises:
            EngineError: it cannot be opened here.
        """
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_run_child,
            args=(theirs, artifact, settings, sequence_tokens, draft, adapters),
            name="keiryo engine",
            daemon=True,
        )
        self._process.start()
        theirs.close()
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        try:
            said: object = self._pipe.recv()
        except EOFError:
            said = Failed(self._last_words())
        if not isinstance(said, Opened):
            self.stop()
            raise EngineError(
                said.message if isinstance(said, Failed) else f"the engine's process said {said!r}"
            )
        self.opened = said

    def start(self, deliver: Deliver, died: Died) -> None:
        """See `EngineLink.start`."""
        threading.Thread(target=self._read, args=(deliver, died), name="engine answers", daemon=True).start()
        threading.Thread(target=self._write, name="engine commands", daemon=True).start()

    def send(self, command: Command) -> None:
        """Queue a command for the thread that writes: a full pipe must not hold the server."""
        self._commands.put(command)

    def stop(self) -> None:
        """Kill the child: it holds nothing that would have to be saved."""
        self._commands.put(None)
        self._process.kill()
        self._process.join()

    def _read(self, deliver: Deliver, died: Died) -> None:
        try:
            while not isinstance(said := self._pipe.recv(), Failed):
                deliver(said)
            died(said.message)
        except (EOFError, ConnectionResetError):
            died(self._last_words())

    def _write(self) -> None:
        try:
            while (command := self._commands.get()) is not None:
                self._pipe.send(command)
        except BrokenPipeError:
            return  # the thread that reads says so

    def _last_words(self) -> str:
        self._process.join(_EXIT_S)
        code = self._process.exitcode
        return (
            f"the engine's process ended with code {code}"
            if code is not None
            else "the engine's process hangs"
        )


def _run_child(
    pipe: Connection,
    artifact: Artifact,
    settings: EngineSettings,
    sequence_tokens: int,
    draft: Artifact | None,
    adapters: Mapping[str, Path],
) -> None:
    """The child: open, say so, step until the server is gone."""
    # Ctrl-C and a service manager signal the whole group; the server still needs the engine to finish what runs.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    from tasks.engines.streaming_open import open_streaming

    def receive(wait: bool) -> Command | None:
        if not wait and not pipe.poll():
            return None
        command: Command = pipe.recv()
        return command

    try:
        engine = open_streaming(
            artifact, settings, sequence_tokens=sequence_tokens, draft=draft, adapters=adapters
        )
        pipe.send(Opened(engine.samples, engine.sequence_tokens, engine.slots))
        step_engine(engine, receive, pipe.send)
    except EngineError as error:
        pipe.send(Failed(str(error)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the server is gone
