"""What the two ways of serving with transformers have in common, as peers of the serve benchmark."""

from tasks.engines.transformers_engine import TransformersEngine


class TransformersPeer:
    """The part of the streaming protocol that says what an engine is; greedy, and nobody cancels."""

    samples = False
    sequence_tokens = 2048

    def __init__(self, engine: TransformersEngine) -> None:
        self.settings = engine.settings
        self.slots = engine.settings.scheduler.max_num_seqs
        self._engine = engine

    def cancel(self, request_id: int) -> None:
        raise NotImplementedError("nobody cancels here")

    def close(self) -> None:
        self._engine.close()
