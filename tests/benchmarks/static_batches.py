"""transformers behind the streaming protocol as it is used by hand: padded batches, nobody enters before the last row is done."""

from collections import deque
from collections.abc import Iterator

import torch
from transformers import DynamicCache

from tasks.engines.protocol import GenerationRequest
from tasks.engines.streaming import Progress, StreamRequest
from tasks.engines.transformers_engine import TransformersEngine
from tests.benchmarks.transformers_peer import TransformersPeer


class StaticBatches(TransformersPeer):
    """Batches of up to `scheduler.max_num_seqs` of those that wait; a token is out when its step is done."""

    def __init__(self, engine: TransformersEngine) -> None:
        super().__init__(engine)
        self._waiting: deque[tuple[int, GenerationRequest]] = deque()
        self._batch: Iterator[list[Progress]] | None = None

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._batch)

    def submit(self, request_id: int, request: StreamRequest) -> None:
        self._waiting.append((request_id, request.generation))

    def step(self) -> list[Progress]:
        if self._batch is None:
            taken = [self._waiting.popleft() for _ in range(min(self.slots, len(self._waiting)))]
            self._batch = self._generated(taken)
        made = next(self._batch, None)
        if made is None:
            self._batch = None
            return []
        return made

    @torch.inference_mode()
    def _generated(self, taken: list[tuple[int, GenerationRequest]]) -> Iterator[list[Progress]]:
        fed_BT, mask_BT = self._engine._padded([request.prompt for _, request in taken], left=True)
        cache = DynamicCache(config=self._engine._model.config)
        left = {row: request.max_new_tokens for row, (_, request) in enumerate(taken)}
        while left:
            positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)[:, -fed_BT.shape[1] :]
            next_B = self._engine._model(
                input_ids=fed_BT, attention_mask=mask_BT, position_ids=positions_BT, past_key_values=cache,
                use_cache=True, logits_to_keep=1,
            ).logits[:, -1].argmax(-1)  # fmt: skip
            made = []
            for row in list(left):
                left[row] -= 1
                end = None if left[row] else "length"
                made.append(Progress(taken[row][0], (int(next_B[row]),), end))
                if end:
                    del left[row]
            mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(taken), 1)], 1)
            fed_BT = next_B[:, None]
            yield made
