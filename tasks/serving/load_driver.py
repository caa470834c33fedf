"""Feeds a workload to a streaming engine and writes down when everything happened.

Open loop: a request arrives at its time whatever the server does, and its clock runs from then on (Schroeder et al., Open
versus closed, NSDI 2006). A request that has arrived waits here until one of the engine's slots is free and is handed over
before the next step, which is when the engine's own queue would have let it in; so the time in the queue can be told from the
time of its prompt.
"""

import itertools
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tasks.engines.protocol import EngineError
from tasks.engines.streaming import Progress, StreamingEngine, StreamRequest
from tasks.profiling.cache_memory import BLOCK_TOKENS
from tasks.serving.energy import EnergyMeter
from tasks.serving.workload import Workload


class Clock(Protocol):
    """Where the driver reads the time; a test has one that stands still until something takes time."""

    def now_s(self) -> float:
        """Seconds since any fixed moment."""
        ...

    def wait_until(self, at_s: float) -> None:
        """Come back at that time."""
        ...


class WallClock:
    """The real one."""

    def now_s(self) -> float:
        """See `Clock`."""
        return time.perf_counter()

    def wait_until(self, at_s: float) -> None:
        """See `Clock`."""
        time.sleep(max(0.0, at_s - time.perf_counter()))


@dataclass(frozen=True)
class RequestTimes:
    """One request, all times in seconds after the start of the run.

    Attributes:
        arrived_s: when it was asked.
        admitted_s: when it got a slot.
        token_times_s: when each of its tokens was out: the end of the step that made it.
    """

    arrived_s: float
    admitted_s: float
    token_times_s: tuple[float, ...]

    @property
    def queue_s(self) -> float:
        """Arrival to slot."""
        return self.admitted_s - self.arrived_s

    @property
    def ttft_s(self) -> float:
        """Arrival to first token."""
        return self.token_times_s[0] - self.arrived_s

    @property
    def end_to_end_s(self) -> float:
        """Arrival to last token."""
        return self.token_times_s[-1] - self.arrived_s

    @property
    def gaps_s(self) -> tuple[float, ...]:
        """Between neighbouring tokens."""
        return tuple(after - before for before, after in itertools.pairwise(self.token_times_s))

    @property
    def mean_gap_s(self) -> float:
        """Mean time between its tokens; 0 where it has one token."""
        first, last, count = self.token_times_s[0], self.token_times_s[-1], len(self.token_times_s)
        return (last - first) / (count - 1) if count > 1 else 0.0


@dataclass(frozen=True)
class StepView:
    """One step of the engine.

    Attributes:
        began_s: its beginning, after the start of the run.
        ended_s: its end.
        running: requests in slots.
        decoding: of these, those that have their first token when it ends.
        waiting: requests that have arrived and have no slot.
        cached_tokens: prompt and new tokens of the decoding requests.
        paged_tokens: the same in whole cache blocks.
    """

    began_s: float
    ended_s: float
    running: int
    decoding: int
    waiting: int
    cached_tokens: int
    paged_tokens: int


@dataclass(frozen=True)
class LoadRun:
    """One workload served once.

    Attributes:
        requests: in order of arrival.
        steps: of the engine, in order; between them it had nothing to do.
        slots: of the engine.
        longest_tokens: of any request at its end: what a contiguous cache reserves for each.
        seconds: from the start to the last token.
        energy_j: of the processors meanwhile; None where the machine cannot tell.
    """

    requests: tuple[RequestTimes, ...]
    steps: tuple[StepView, ...]
    slots: int
    longest_tokens: int
    seconds: float
    energy_j: float | None


@dataclass
class _Served:
    """A request on its way."""

    index: int
    prompt_tokens: int
    arrived_s: float
    admitted_s: float = 0.0
    times_s: list[float] = field(default_factory=list)


class LoadDriver:
    """Serves workloads on one engine, one after another."""

    def __init__(
        self, engine: StreamingEngine, clock: Clock | None = None, energy: EnergyMeter | None = None
    ) -> None:
        """Take an open, idle engine.

        Args:
            engine: it belongs to the driver's thread.
            clock: None: the real one.
            energy: None: what this machine has.
        """
        self._engine = engine
        self._clock = clock or WallClock()
        self._energy = energy or EnergyMeter.of_machine(gpu=engine.settings.device == "cuda")
        self._ids = itertools.count()

    def run(self, workload: Workload) -> LoadRun:
        """Serve every request to its end.

        Raises:
            EngineError: the engine failed, gave a request up, or made another number of tokens than asked for.
        """
        began_j = self._energy.joules()
        served, steps = _Run(self._engine, self._clock, self._ids, workload).serve()
        ended_j = self._energy.joules()
        return LoadRun(
            requests=tuple(RequestTimes(r.arrived_s, r.admitted_s, tuple(r.times_s)) for r in served),
            steps=tuple(steps),
            slots=self._engine.slots,
            longest_tokens=workload.longest_tokens,
            seconds=max(each.times_s[-1] for each in served),
            energy_j=None if began_j is None or ended_j is None else ended_j - began_j,
        )


class _Run:
    """One run: who is still to come, who waits, who runs, who is done."""

    def __init__(
        self, engine: StreamingEngine, clock: Clock, ids: "itertools.count[int]", workload: Workload
    ) -> None:
        self._engine, self._clock, self._ids, self._workload = engine, clock, ids, workload
        closed = workload.clients or len(workload.requests)
        arrivals_s = workload.arrivals_s or (0.0,) * min(closed, len(workload.requests))
        self._coming = deque(self._arrival(index, at_s) for index, at_s in enumerate(arrivals_s))
        self._next = len(self._coming)  # the next request of a closed loop
        self._waiting: deque[_Served] = deque()
        self._running: dict[int, _Served] = {}
        self._done: list[_Served] = []
        self._steps: list[StepView] = []
        self._start_s = clock.now_s()

    def serve(self) -> tuple[list[_Served], list[StepView]]:
        try:
            self._serve()
        except BaseException:
            for key in self._running:  # or the next run would be told of them
                self._engine.cancel(key)
            raise
        return sorted(self._done, key=lambda each: each.index), self._steps

    def _serve(self) -> None:
        while self._coming or self._waiting or self._running:
            self._let_in()
            if self._running:
                self._step()
            elif self._coming:
                self._clock.wait_until(self._start_s + self._coming[0].arrived_s)

    def _now_s(self) -> float:
        return self._clock.now_s() - self._start_s

    def _arrival(self, index: int, at_s: float) -> _Served:
        return _Served(index, len(self._workload.requests[index].prompt), at_s)

    def _let_in(self) -> None:
        while self._coming and self._start_s + self._coming[0].arrived_s <= self._clock.now_s():
            self._waiting.append(self._coming.popleft())
        while self._waiting and len(self._running) < self._engine.slots:
            served, key = self._waiting.popleft(), next(self._ids)
            served.admitted_s = self._now_s()
            self._engine.submit(key, StreamRequest(self._workload.requests[served.index]))
            self._running[key] = served

    def _step(self) -> None:
        if not self._engine.busy:
            raise EngineError(
                f"{self._engine.settings.engine} is idle while {len(self._running)} requests are unfinished"
            )
        began_s, running, waiting = self._now_s(), len(self._running), len(self._waiting)
        made = self._engine.step()
        ended_s = self._now_s()
        for progress in made:
            self._running[progress.request_id].times_s += [ended_s] * len(progress.tokens)
        held = [each.prompt_tokens + len(each.times_s) for each in self._running.values() if each.times_s]
        blocks = sum(-(-tokens // BLOCK_TOKENS) for tokens in held)
        self._steps.append(
            StepView(began_s, ended_s, running, len(held), waiting, sum(held), blocks * BLOCK_TOKENS)
        )
        self._finish(made, ended_s)

    def _finish(self, made: Sequence[Progress], now_s: float) -> None:
        for progress in made:
            if progress.end is None:
                continue
            served = self._running.pop(progress.request_id)
            asked = self._workload.requests[served.index]
            if progress.end != "length" or len(served.times_s) != asked.max_new_tokens:
                raise EngineError(
                    f"{self._engine.settings.engine} ended a request of {served.prompt_tokens} + {asked.max_new_tokens} "
                    f"tokens as {progress.end!r} after {len(served.times_s)}; if the KV cache does not hold it, raise "
                    f"scheduler.cache_mib ({self._engine.settings.scheduler.cache_mib})"
                )
            self._done.append(served)
            if self._workload.arrivals_s is None and self._next < len(self._workload.requests):
                self._coming.append(self._arrival(self._next, now_s))
                self._next += 1
