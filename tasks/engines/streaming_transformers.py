"""transformers for a server: one request after another, greedy. The slow baseline, for comparing and debugging.

A release on this engine means that no faster one passed the gate; its speed here is that of the profile stage's
"requests one after another".
"""

from collections import deque
from typing import Any

import torch
from transformers import DynamicCache

from configs.engine import EngineSettings
from tasks.engines.protocol import EngineError, EngineUnavailable, GenerationRequest
from tasks.engines.streaming import End, Progress, StreamRequest
from tasks.engines.transformers_engine import TransformersEngine
from tasks.store.artifact import Artifact


class _Current:
    """The request that runs: its cache and the tokens to feed next, shape (1, T)."""

    def __init__(self, request_id: int, request: GenerationRequest, model: Any) -> None:
        self.request_id, self.request = request_id, request
        self.cache = DynamicCache(config=model.config)
        self.fed_BT = torch.tensor([request.prompt], device=model.device)
        self.made = 0


class StreamingTransformers:
    """A checkpoint with a KV cache that grows with its only request."""

    samples = False
    slots = 1

    def __init__(self, engine: TransformersEngine, sequence_tokens: int) -> None:
        """Use `open`."""
        self.settings = engine.settings
        self.sequence_tokens = sequence_tokens
        self._engine = engine
        self._waiting: deque[tuple[int, GenerationRequest]] = deque()
        self._current: _Current | None = None

    @classmethod
    def open(
        cls, artifact: Artifact, settings: EngineSettings, *, sequence_tokens: int
    ) -> "StreamingTransformers":
        """Load a checkpoint.

        Raises:
            EngineUnavailable: the artifact is no checkpoint, the device is not there, or the KV cache is switched off.
        """
        if not settings.use_kv_cache:
            raise EngineUnavailable("use_kv_cache: false exists to be measured, not served; use true")
        return cls(TransformersEngine.open(artifact, settings), sequence_tokens)

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits."""
        return bool(self._waiting or self._current)

    def submit(self, request_id: int, request: StreamRequest) -> None:
        """Queue a greedy request; see `StreamingEngine.submit`.

        Raises:
            EngineUnavailable: it asks for a temperature above 0.
        """
        if request.sampling.temperature > 0:
            raise EngineUnavailable("engine: transformers is greedy here; ask for temperature 0")
        self._waiting.append((request_id, request.generation))

    def cancel(self, request_id: int) -> None:
        """Forget a request."""
        if self._current and self._current.request_id == request_id:
            self._current = None
        self._waiting = deque(each for each in self._waiting if each[0] != request_id)

    @torch.inference_mode()
    def step(self) -> list[Progress]:
        """The prompt or one token of the request that runs."""
        if self._current is None:
            if not self._waiting:
                return []
            self._current = _Current(*self._waiting.popleft(), self._engine._model)
        current = self._current
        try:
            logits = self._engine._model(
                input_ids=current.fed_BT, past_key_values=current.cache, use_cache=True, logits_to_keep=1
            ).logits[0, -1]
            token = int(logits.argmax())
        except RuntimeError as error:  # out of memory is one
            raise EngineError(f"transformers failed while generating: {error}") from error
        current.made += 1
        current.fed_BT = current.fed_BT.new_tensor([[token]])
        end: End | None = None
        if token in self._engine._stop and not current.request.ignore_eos:
            end = "stop"
        elif current.made == current.request.max_new_tokens:
            end = "length"
        if end:
            self._current = None
        return [Progress(current.request_id, (token,), end)]

    def close(self) -> None:
        """Release the model."""
        self._current = None
        self._waiting.clear()
        self._engine.close()
