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
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from configs.engine import SchedulerSettings
from tasks.engines.onnx_graph import OnnxGraph
from tasks.engines.protocol import EngineError, Generation, GenerationRequest


@dataclass
class _Running:
    """A request in a slot: `stored` tokens are in the cache, the last of `tokens` is not yet."""

    index: int
    request: GenerationRequest
    stored: int
    tokens: list[int] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)


class SlotBatch:
    """One call of `generate`: all requests, the cache, and who runs in which slot."""

    def __init__(
        self,
        graph: OnnxGraph,
        scheduler: SchedulerSettings,
        stop: frozenset[int],
        requests: Sequence[GenerationRequest],
    ) -> None:
        """Reserve the cache.

        Raises:
            EngineError: `cache_mib` does not hold the longest request, or a request is empty.
        """
        if any(not r.prompt or r.max_new_tokens < 1 for r in requests):
            raise EngineError("a generation request needs at least one prompt token and one new token")
        capacity = max(len(r.prompt) + r.max_new_tokens for r in requests)
        affordable = scheduler.cache_mib * 2**20 // (capacity * graph.cache_bytes_a_token)
        if not affordable:
            raise EngineError(
                f"scheduler.cache_mib is {scheduler.cache_mib}; a request of {capacity} tokens needs "
                f"{capacity * graph.cache_bytes_a_token / 2**20:.1f} MiB; raise it"
            )
        self._graph = graph
        self._scheduler = scheduler
        self._stop = stop
        self._slots = min(scheduler.max_num_seqs, scheduler.max_num_batched_tokens, affordable, len(requests))
        shape = (graph.layers, self._slots, graph.kv_heads, capacity, graph.head_dim)
        self.cache: NDArray[np.float32] = np.zeros(shape, np.float32)
        self._waiting = deque(_Running(i, r, len(r.prompt)) for i, r in enumerate(requests))
        self._active: list[_Running] = []
        self._done: dict[int, Generation] = {}
        self._began = time.perf_counter()

    def run(self) -> list[Generation]:
        """Complete all requests, in order."""
        while self._waiting or self._active:
            for _ in self._prefill(self._admitted()):
                if self._scheduler.split_prefill:
                    self._decode(once=True)
            self._decode()
        return [self._done[i] for i in range(len(self._done))]

    def _admitted(self) -> list[_Running]:
        """The next waiting requests that fit the free slots and, padded, the tokens of one step."""
        new: list[_Running] = []
        longest = 0
        while self._waiting and len(self._active) + len(new) < self._slots:
            longest = max(longest, self._waiting[0].stored)
            if new and longest * (len(new) + 1) > self._scheduler.max_num_batched_tokens:
                break
            new.append(self._waiting.popleft())
        return new

    def _prefill(self, new: list[_Running]) -> Iterator[None]:
        """Fill slots; yields between the pieces of a prompt that is longer than one step may be."""
        if not new:
            return
        piece = self._scheduler.max_num_batched_tokens
        *before, last = range(0, max(r.stored for r in new), piece)
        past: list[NDArray[np.float32]] | None = None
        for begin in before:  # a prompt of several pieces was admitted alone
            part = new[0].request.prompt[begin : begin + piece]
            _, past = self._graph.feed([part], np.empty(0, np.int64), past, keep=True)
            yield
        fed = [r.request.prompt[last:] for r in new]
        width = max(map(len, fed))
        rows = np.array([i * width + len(f) - 1 for i, f in enumerate(fed)])
        logits_BV, present = self._graph.feed(fed, rows, past, keep=True)
        first = len(self._active)
        for layer, kept in zip(self.cache, present, strict=True):
            layer[first : first + len(new), :, : kept.shape[2]] = kept
        self._active += new
        self._record(new, logits_BV)

    def _decode(self, *, once: bool = False) -> None:
        """One token of every active slot; unless `once`, again while nobody leaves and nobody could enter."""
        if not self._active:
            return
        running = len(self._active)
        decoder = self._graph.decoder(self.cache, running)
        while True:
            logits_BV = decoder.step([r.tokens[-1] for r in self._active], [r.stored for r in self._active])
            for request in self._active:
                request.stored += 1
            self._record(list(self._active), logits_BV)
            if once or len(self._active) < running or (self._waiting and running < self._slots):
                return

    def _record(self, running: list[_Running], logits_BV: NDArray[np.float32]) -> None:
        """Append the most probable token of each row, and free the slots of those that are done."""
        tokens_B = logits_BV.argmax(-1)
        if not np.isfinite(logits_BV[np.arange(len(running)), tokens_B]).all():
            raise EngineError("the engine returned logits that are not finite; try another weight format")
        now = time.perf_counter() - self._began
        for request, token in zip(running, tokens_B, strict=True):
            request.tokens.append(int(token))
            request.times_s.append(now)
        for request in running:
            ended = request.tokens[-1] in self._stop and not request.request.ignore_eos
            if ended or len(request.tokens) == request.request.max_new_tokens:
                self._done[request.index] = Generation(tuple(request.tokens), tuple(request.times_s))
                self._free(self._active.index(request))

    def _free(self, slot: int) -> None:
        last = self._active.pop()
        if slot < len(self._active):
            self.cache[:, slot, :, : last.stored] = self.cache[:, len(self._active), :, : last.stored]
            self._active[slot] = last
