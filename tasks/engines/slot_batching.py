"""Continuous batching over the slots of one contiguous KV cache.

onnxruntime-genai 0.18 has an `Engine` for this, but its dynamic batching needs PagedAttention, which exists
for CUDA only; on the CPU it runs static batches of four whatever `static_batching.max_batch_size` says
(five requests of 5 to 12 tokens took 23 steps), and it would hold the weights a second time beside the
scoring session. Here a request takes a slot as soon as one is free: prompts are prefilled, every step
decodes one token of every active slot, and a finished slot is filled by the last one, so that the active
slots are always the first ones and no step computes padding rows.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from configs.engine import SchedulerSettings
from tasks.engines.onnx_graph import Decoder, OnnxGraph
from tasks.engines.protocol import EngineError, Generation, GenerationRequest
from tasks.engines.streaming import Progress

_CANCELLED = -1  # the id of a request that was cancelled while its prompt was being fed


@dataclass(eq=False)
class _Running:
    """A request in a slot: `stored` tokens are in the cache, the newest of `made` is not yet."""

    request_id: int
    request: GenerationRequest
    stored: int
    made: int = 0
    last: int = 0


class Slots:
    """The cache, who runs in which slot and who waits for one.

    Attributes:
        count: requests that run together, at most.
        capacity: tokens that a slot holds, prompt and completion.
    """

    def __init__(
        self,
        graph: OnnxGraph,
        scheduler: SchedulerSettings,
        stop: frozenset[int],
        *,
        capacity: int,
        most: int,
    ) -> None:
        """Reserve the cache.

        Args:
            graph: the session.
            scheduler: its limits.
            stop: tokens that end a text.
            capacity: tokens of the longest request, its completion included.
            most: slots that could ever be needed.

        Raises:
            EngineError: `cache_mib` does not hold one slot.
        """
        affordable = scheduler.cache_mib * 2**20 // (capacity * graph.cache_bytes_a_token)
        if not affordable:
            raise EngineError(
                f"scheduler.cache_mib is {scheduler.cache_mib}; a request of {capacity} tokens needs "
                f"{capacity * graph.cache_bytes_a_token / 2**20:.1f} MiB; raise it"
            )
        self.capacity = capacity
        self.count = min(scheduler.max_num_seqs, scheduler.max_num_batched_tokens, affordable, most)
        shape = (graph.layers, self.count, graph.kv_heads, capacity, graph.head_dim)
        self.cache: NDArray[np.float32] = np.zeros(shape, np.float32)
        self._graph = graph
        self._scheduler = scheduler
        self._stop = stop
        self._waiting: deque[_Running] = deque()
        self._active: list[_Running] = []
        self._prefilling: Iterator[list[Progress]] | None = None
        self._entering: list[_Running] = []
        self._entered = False
        self._decoder: Decoder | None = None
        self._bound = 0

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits."""
        return bool(self._waiting or self._active or self._prefilling)

    def submit(self, request_id: int, request: GenerationRequest) -> None:
        """Queue a request.

        Raises:
            EngineError: it is empty, or longer than a slot.
        """
        if not request.prompt or request.max_new_tokens < 1:
            raise EngineError("a generation request needs at least one prompt token and one new token")
        if len(request.prompt) + request.max_new_tokens > self.capacity:
            raise EngineError(
                f"a request of {len(request.prompt)} + {request.max_new_tokens} tokens does not fit a slot of "
                f"{self.capacity} tokens"
            )
        self._waiting.append(_Running(request_id, request, len(request.prompt)))

    def cancel(self, request_id: int) -> None:
        """Free a request's slot, or its place in the queue; one that is being prefilled goes when that is done."""
        for slot, running in enumerate(self._active):
            if running.request_id == request_id:
                self._free(slot)
                return
        for running in self._entering:
            if running.request_id == request_id:
                running.request_id = _CANCELLED
        self._waiting = deque(running for running in self._waiting if running.request_id != request_id)

    def step(self) -> list[Progress]:
        """One piece of a prefill where somebody enters, and one token of every active slot.

        First tokens are a step of their own, and a decoding step follows before anybody else enters.

        Raises:
            EngineError: ONNX Runtime failed, or returned logits that are not finite.
        """
        first = self._prefilled()
        self._entered = bool(first)
        made = first or self._decode()
        return [progress for progress in made if progress.request_id != _CANCELLED]

    def forget_bindings(self) -> None:
        """What the graph computes with has changed: bind anew before the next token."""
        self._decoder = None

    def _prefilled(self) -> list[Progress]:
        """The first tokens of those whose prefill ended in this step."""
        if self._prefilling is None and not self._entered and (new := self._admitted()):
            self._entering = new
            self._prefilling = self._prefill(new)
        while self._prefilling is not None:
            made = next(self._prefilling, None)
            if made:
                self._prefilling, self._entering = None, []
                return made
            if self._scheduler.split_prefill:
                break
        return []

    def _admitted(self) -> list[_Running]:
        """The next waiting requests that fit the free slots and, padded, the tokens of one step."""
        new: list[_Running] = []
        longest = 0
        while self._waiting and len(self._active) + len(new) < self.count:
            longest = max(longest, self._waiting[0].stored)
            if new and longest * (len(new) + 1) > self._scheduler.max_num_batched_tokens:
                break
            new.append(self._waiting.popleft())
        return new

    def _prefill(self, new: list[_Running]) -> Iterator[list[Progress]]:
        """Fill slots; yields after each piece of a prompt that is longer than one step may be."""
        piece = self._scheduler.max_num_batched_tokens
        *before, last = range(0, max(r.stored for r in new), piece)
        past: list[NDArray[np.float32]] | None = None
        for begin in before:  # a prompt of several pieces was admitted alone
            part = new[0].request.prompt[begin : begin + piece]
            _, past = self._graph.feed([part], np.empty(0, np.int64), past, keep=True)
            yield []
        fed = [r.request.prompt[last:] for r in new]
        width = max(map(len, fed))
        rows = np.array([i * width + len(f) - 1 for i, f in enumerate(fed)])
        logits_BV, present = self._graph.feed(fed, rows, past, keep=True)
        first = len(self._active)
        for layer, kept in zip(self.cache, present, strict=True):
            layer[first : first + len(new), :, : kept.shape[2]] = kept
        self._active += new
        made = self._picked(new, logits_BV)
        for running in [
            r for r in new if r.request_id == _CANCELLED and r in self._active
        ]:  # cancelled meanwhile
            self._free(self._active.index(running))
        yield made

    def _decode(self) -> list[Progress]:
        """One token of every active slot; the cache stays bound while their number stays the same."""
        if not self._active:
            return []
        if self._decoder is None or self._bound != len(self._active):
            self._bound = len(self._active)
            self._decoder = self._graph.decoder(self.cache, self._bound)
        logits_BV = self._decoder.step([r.last for r in self._active], [r.stored for r in self._active])
        for running in self._active:
            running.stored += 1
        return self._picked(list(self._active), logits_BV)

    def _picked(self, running: list[_Running], logits_BV: NDArray[np.float32]) -> list[Progress]:
        """Take the most probable token of each row, and free the slots of those that are done."""
        tokens_B = logits_BV.argmax(-1)
        if not np.isfinite(logits_BV[np.arange(len(running)), tokens_B]).all():
            raise EngineError("the engine returned logits that are not finite; try another weight format")
        made = []
        for each, token in zip(running, tokens_B.tolist(), strict=True):
            each.last = token
            each.made += 1
            stopped = token in self._stop and not each.request.ignore_eos
            full = each.made == each.request.max_new_tokens
            made.append(
                Progress(each.request_id, (token,), "stop" if stopped else "length" if full else None)
            )
        for each, progress in zip(running, made, strict=True):
            if progress.end:
                self._free(self._active.index(each))
        return made

    def _free(self, slot: int) -> None:
        last = self._active.pop()
        if slot < len(self._active):
            self.cache[:, slot, :, : last.stored] = self.cache[:, len(self._active), :, : last.stored]
            self._active[slot] = last


class SlotBatch:
    """One call of `generate`: all requests at once, and when each of their tokens was out."""

    def __init__(
        self,
        graph: OnnxGraph,
        scheduler: SchedulerSettings,
        stop: frozenset[int],
        requests: Sequence[GenerationRequest],
    ) -> None:
        """Reserve the cache and queue the requests.

        Raises:
            EngineError: `cache_mib` does not hold the longest request, or a request is empty.
        """
        capacity = max(1, *(len(r.prompt) + r.max_new_tokens for r in requests))
        self._slots = Slots(graph, scheduler, stop, capacity=capacity, most=len(requests))
        self._count = len(requests)
        for index, request in enumerate(requests):
            self._slots.submit(index, request)
        self._began = time.perf_counter()

    @property
    def cache(self) -> NDArray[np.float32]:
        """Keys and values, shape (layers, slots, kv_heads, capacity, head_dim)."""
        return self._slots.cache

    def run(self) -> list[Generation]:
        """Complete all requests, in order."""
        tokens: list[list[int]] = [[] for _ in range(self._count)]
        times_s: list[list[float]] = [[] for _ in range(self._count)]
        while self._slots.busy:
            made = self._slots.step()
            now = time.perf_counter() - self._began
            for progress in made:
                tokens[progress.request_id] += progress.tokens
                times_s[progress.request_id] += [now] * len(progress.tokens)
        return [Generation(tuple(t), tuple(s)) for t, s in zip(tokens, times_s, strict=True)]
