"""transformers' own continuous batching behind the streaming protocol: a paged cache, stepped by a thread that it runs itself."""

from transformers import ContinuousBatchingConfig, GenerationConfig

from tasks.engines.protocol import EngineError
from tasks.engines.streaming import Progress, StreamRequest
from tasks.engines.transformers_engine import TransformersEngine
from tests.benchmarks.transformers_peer import TransformersPeer

_BLOCK_TOKENS = 32
_FIRST_S = 0.2


class PagedBatches(TransformersPeer):
    """A step takes up to `scheduler.max_num_batched_tokens`, prompts in pieces; a token is out when it is in the manager's queue."""

    def __init__(self, engine: TransformersEngine) -> None:
        super().__init__(engine)
        self._wanted: dict[int, int] = {}
        self._seen: dict[int, int] = {}
        self._manager = engine._model.init_continuous_batching(
            GenerationConfig(do_sample=False, eos_token_id=-1, max_new_tokens=self.sequence_tokens),
            ContinuousBatchingConfig(
                block_size=_BLOCK_TOKENS,
                num_blocks=self.slots * self.sequence_tokens // _BLOCK_TOKENS,
                max_batch_tokens=engine.settings.scheduler.max_num_batched_tokens,
            ),
        )
        self._manager.start()

    @property
    def busy(self) -> bool:
        return bool(self._wanted)

    def submit(self, request_id: int, request: StreamRequest) -> None:
        self._wanted[request_id] = request.generation.max_new_tokens
        self._seen[request_id] = 0
        self._manager.add_request(
            list(request.generation.prompt),
            str(request_id),
            request.generation.max_new_tokens,
            streaming=True,
        )

    def step(self) -> list[Progress]:
        """What came since, waiting a little for the first of it."""
        made = []
        output = self._manager.get_result(timeout=_FIRST_S)
        while output is not None:
            if output.error is not None:
                raise EngineError(f"transformers gave a request up: {output.error}")
            made += self._progress(int(output.request_id), output.generated_tokens)
            output = (
                None
                if self._manager.output_router.output_queue.empty()
                else self._manager.get_result(timeout=0)
            )
        if not made and not self._manager.is_running():
            raise EngineError("transformers' continuous batching has ended by itself")
        return made

    def close(self) -> None:
        self._manager.stop(block=True)
        super().close()

    def _progress(self, request_id: int, tokens: list[int]) -> list[Progress]:
        """The list grows while it is looked at, so that a later look at it may bring nothing."""
        fresh = tuple(tokens[self._seen.get(request_id, len(tokens)) :])
        if not fresh:
            return []
        self._seen[request_id] += len(fresh)
        is_last = self._seen[request_id] >= self._wanted[request_id]
        if is_last:
            del self._wanted[request_id], self._seen[request_id]
        return [Progress(request_id, fresh, "length" if is_last else None)]
