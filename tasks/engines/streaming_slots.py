"""ONNX Runtime for a server: the slots of `slot_batching.py`, fed as requests come. Greedy only."""

from collections.abc import Mapping
from pathlib import Path

from configs.engine import EngineSettings
from tasks.engines.onnxruntime_engine import OnnxRuntimeEngine
from tasks.engines.protocol import EngineUnavailable
from tasks.engines.slot_batching import Slots
from tasks.engines.streaming import Progress, StreamRequest
from tasks.store.artifact import Artifact


class StreamingSlots:
    """One session, and a cache of as many slots as `cache_mib` holds sequences of the longest length."""

    samples = False

    def __init__(self, engine: OnnxRuntimeEngine, sequence_tokens: int) -> None:
        """Use `open`."""
        graph = engine._open_graph()
        scheduler = engine.settings.scheduler
        self.settings = engine.settings
        # A contiguous slot is as long as the longest request may be, so a small cache means short requests.
        self.sequence_tokens = min(sequence_tokens, scheduler.cache_mib * 2**20 // graph.cache_bytes_a_token)
        self._engine = engine
        self._slots = Slots(
            graph, scheduler, engine._stop, capacity=self.sequence_tokens, most=scheduler.max_num_seqs
        )
        self.slots = self._slots.count

    @classmethod
    def open(
        cls,
        artifact: Artifact,
        settings: EngineSettings,
        *,
        sequence_tokens: int,
        adapters: Mapping[str, Path] = {},
    ) -> "StreamingSlots":
        """Open an ONNX artifact and reserve its cache.

        Raises:
            EngineUnavailable: the artifact is of another kind, a setting is not offered here, or an adapter does not fit.
        """
        return cls(OnnxRuntimeEngine.open(artifact, settings, adapters=adapters), sequence_tokens)

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits."""
        return self._slots.busy

    def submit(self, request_id: int, request: StreamRequest) -> None:
        """Queue a greedy request; see `StreamingEngine.submit`.

        Raises:
            EngineUnavailable: it asks for a temperature above 0.
        """
        if request.sampling.temperature > 0:
            raise EngineUnavailable("engine: onnxruntime is greedy here; ask for temperature 0")
        self._slots.submit(request_id, request.generation)

    def cancel(self, request_id: int) -> None:
        """Free the request's slot."""
        self._slots.cancel(request_id)

    def step(self) -> list[Progress]:
        """See `Slots.step`."""
        return self._slots.step()

    def use_adapter(self, name: str | None) -> None:
        """See `SwitchingEngine.use_adapter`."""
        self._engine.use_adapter(name)
        self._slots.forget_bindings()

    def close(self) -> None:
        """Release the session."""
        self._engine.close()
