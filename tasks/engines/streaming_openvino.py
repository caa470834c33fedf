"""OpenVINO GenAI's continuous batching, one step at a time: its scheduler, its paged cache, its sampler.

Tried with 2026.4: every request has its own generator (a seed gives the same text alone and in a batch, and without
one all requests would draw alike); a cancelled request leaves the scheduler at the next step; `read` always says
finish_reason NONE, so the end is taken from the status and the tokens; `step` holds Python's global lock, which is
why the server runs this in a process of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from configs.engine import EngineSettings
from tasks.engines.openvino_engine import BLOCK_TOKENS, OpenVinoEngine
from tasks.engines.protocol import EngineError
from tasks.engines.streaming import End, Progress, StreamRequest
from tasks.store.artifact import Artifact


@dataclass
class _Running:
    """A request in the pipeline: its handle, how many tokens it has made, and which of them end it."""

    handle: Any
    max_new_tokens: int
    stop: frozenset[int]
    made: int = 0


class StreamingOpenVino:
    """The pipeline that `OpenVinoEngine.generate` measures, fed as requests come."""

    samples = True

    def __init__(self, engine: OpenVinoEngine, sequence_tokens: int) -> None:
        """Use `open`."""
        self.settings = engine.settings
        self.slots = engine.settings.scheduler.max_num_seqs
        # One block stays free: the scheduler plans the next token before it knows that the last one was the last.
        self.sequence_tokens = min(sequence_tokens, max(1, engine.cache_blocks - 1) * BLOCK_TOKENS)
        self._engine = engine
        self._pipeline = engine._served()
        self._stop = frozenset(self._pipeline.get_config().stop_token_ids)
        self._running: dict[int, _Running] = {}

    @classmethod
    def open(
        cls,
        artifact: Artifact,
        settings: EngineSettings,
        *,
        sequence_tokens: int,
        draft: Artifact | None = None,
        adapters: Mapping[str, Path] = {},
    ) -> "StreamingOpenVino":
        """Open an exported artifact and compile its pipeline, with its draft's where `settings.speculation` names one.

        Raises:
            EngineUnavailable: the artifact is of another kind, the draft or an adapter does not fit it, or this processor lacks what
                the settings need.
        """
        engine = OpenVinoEngine.open(artifact, settings, draft=draft, adapters=adapters)
        return cls(engine, sequence_tokens)

    @property
    def busy(self) -> bool:
        """Whether the pipeline holds a request, cancelled ones included until the next step drops them."""
        return bool(self._pipeline.has_non_finished_requests())

    def submit(self, request_id: int, request: StreamRequest) -> None:
        """Give the pipeline a request; see `StreamingEngine.submit`."""
        prompt = ov.Tensor(np.array([request.generation.prompt], np.int64))
        handle = self._pipeline.add_request(request_id, prompt, self._config(request))
        asked = request.generation
        stop = frozenset[int]() if asked.ignore_eos else self._stop
        self._running[request_id] = _Running(handle, asked.max_new_tokens, stop)

    def cancel(self, request_id: int) -> None:
        """Drop a request; its blocks are free after the next step."""
        if running := self._running.pop(request_id, None):
            running.handle.cancel()

    def step(self) -> list[Progress]:
        """One step of the pipeline's scheduler; see `StreamingEngine.step`."""
        try:
            self._pipeline.step()
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed while generating: {error}") from error
        made = [progress for key in list(self._running) if (progress := self._read(key))]
        for progress in made:
            if progress.end:
                del self._running[progress.request_id]
        return made

    def use_adapter(self, name: str | None) -> None:
        """See `SwitchingEngine.use_adapter`."""
        self._engine.use_adapter(name)

    def close(self) -> None:
        """Release the pipeline."""
        self._running.clear()
        self._pipeline = None
        self._engine.close()

    def _read(self, request_id: int) -> Progress | None:
        running = self._running[request_id]
        status = running.handle.get_status().name
        if status == "IGNORED":
            return Progress(request_id, (), "rejected")
        if not running.handle.can_read():
            return None
        tokens = tuple(token for output in running.handle.read().values() for token in output.generated_ids)
        running.made += len(tokens)
        end: End | None = None
        if status != "RUNNING":
            end = "stop" if tokens[-1] in running.stop or running.made < running.max_new_tokens else "length"
        return Progress(request_id, tokens, end)

    def _config(self, request: StreamRequest) -> Any:
        config = self._pipeline.get_config()
        config.max_new_tokens = request.generation.max_new_tokens
        config.ignore_eos = request.generation.ignore_eos
        if request.generation.ignore_eos:
            config.stop_token_ids = set()
        config.do_sample = request.sampling.temperature > 0
        if config.do_sample:
            config.temperature = request.sampling.temperature
            config.top_p = request.sampling.top_p
            config.rng_seed = request.sampling.seed
        self._engine.speculate(config)
        return config
