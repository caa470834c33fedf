"""Adapters by turns, over an engine whose batch has the same weights for all: requests for one adapter run together.

What asks for the adapter in use joins the batch while nobody waits for another. As soon as somebody does, later requests queue up
behind, the batch runs out, and the adapter of the longest-waiting request takes over with all that wait for it: no adapter can
keep the others out. vLLM needs none of this, its batches mix adapters.
"""

from collections import deque
from typing import Protocol

from tasks.engines.streaming import Progress, StreamingEngine, StreamRequest


class SwitchingEngine(StreamingEngine, Protocol):
    """A streaming engine that changes its weights while it is idle."""

    def use_adapter(self, name: str | None) -> None:
        """Compute with an adapter from now on, or with the base weights alone; never called while `busy`.

        Raises:
            EngineError: the engine failed.
        """
        ...


class AdapterTurns:
    """A streaming engine whose requests may name adapters."""

    def __init__(self, engine: SwitchingEngine) -> None:
        """Take an open engine that computes with its base weights."""
        self.settings = engine.settings
        self.samples = engine.samples
        self.sequence_tokens = engine.sequence_tokens
        self.slots = engine.slots
        self._engine = engine
        self._in_use: str | None = None
        self._waiting: deque[tuple[int, StreamRequest]] = deque()

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits."""
        return self._engine.busy or bool(self._waiting)

    def submit(self, request_id: int, request: StreamRequest) -> None:
        """Let a request join the batch, or wait for its turn."""
        if request.adapter == self._in_use and not self._waiting:
            self._engine.submit(request_id, request)
        else:
            self._waiting.append((request_id, request))

    def cancel(self, request_id: int) -> None:
        """Free what a request holds, or its place in the queue."""
        kept = deque(each for each in self._waiting if each[0] != request_id)
        if len(kept) == len(self._waiting):
            self._engine.cancel(request_id)
        self._waiting = kept

    def step(self) -> list[Progress]:
        """One step of the engine, after the change of turns that is due.

        Raises:
            EngineError: the engine failed.
        """
        if self._waiting and not self._engine.busy:
            self._next_turn()
        return self._engine.step() if self._engine.busy else []

    def close(self) -> None:
        """Release the model."""
        self._waiting.clear()
        self._engine.close()

    def _next_turn(self) -> None:
        turn = self._waiting[0][1].adapter
        if turn != self._in_use:
            self._engine.use_adapter(turn)
            self._in_use = turn
        waiting, self._waiting = self._waiting, deque()
        for request_id, request in waiting:
            if request.adapter == turn:
                self._engine.submit(request_id, request)
            else:
                self._waiting.append((request_id, request))
