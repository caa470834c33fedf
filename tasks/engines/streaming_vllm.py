"""vLLM for whoever steps it: a load, or a measurement. `keiryo serve` starts vLLM's own server instead."""

from typing import cast

from configs.engine import EngineSettings
from tasks.engines.protocol import EngineError
from tasks.engines.streaming import End, Progress, StreamRequest
from tasks.engines.vllm_process import VllmProcess

_ENDS: dict[str | None, End | None] = {None: None, "stop": "stop", "length": "length", "abort": "rejected"}


class StreamingVllm:
    """vLLM's scheduler, step by step."""

    samples = True

    def __init__(self, process: VllmProcess, settings: EngineSettings) -> None:
        """`process` is closed by `close`."""
        self.settings = settings
        self.sequence_tokens = process.sequence_tokens
        self.slots = settings.scheduler.max_num_seqs
        self._process = process
        self._running: set[int] = set()

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits."""
        return bool(self._running)

    def submit(self, request_id: int, request: StreamRequest) -> None:
        """Queue a request; see `StreamingEngine.submit`.

        Raises:
            EngineError: vLLM refuses it.
        """
        asked = request.generation
        self._process.ask(
            "submit",
            id=request_id,
            prompt=asked.prompt,
            max_new_tokens=asked.max_new_tokens,
            ignore_eos=asked.ignore_eos,
            stop=[] if asked.ignore_eos else self._process.stop,
            temperature=request.sampling.temperature,
            top_p=request.sampling.top_p,
            seed=request.sampling.seed,
        )
        self._running.add(request_id)

    def cancel(self, request_id: int) -> None:
        """Have vLLM abort a request."""
        if request_id in self._running:
            self._running.discard(request_id)
            self._process.ask("cancel", id=request_id)

    def step(self) -> list[Progress]:
        """One step of vLLM's scheduler."""
        if not self._running:
            return []
        answer, _ = self._process.ask("step")
        progress = []
        for request_id, tokens, reason in cast(list[tuple[int, list[int], str | None]], answer["progress"]):
            if reason not in _ENDS:
                raise EngineError(f"vLLM ended a request for a reason that is not known here: {reason}")
            end = _ENDS[reason]
            if end is not None:
                self._running.discard(request_id)
            if tokens or end:
                progress.append(Progress(request_id, tuple(tokens), end))
        return progress

    def close(self) -> None:
        """End vLLM's process."""
        self._process.close()
