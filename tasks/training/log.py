"""What a training run says of itself."""

from typing import Literal

from pydantic import Field

from tasks.store.record import Record

Saving = Literal["none", "give_back", "checkpointing", "low_bit_states"]


class TrainingLog(Record):
    """One finished training run.

    Attributes:
        steps: optimizer steps that were taken, those before a kill included.
        tokens: tokens trained on in all steps.
        seconds: wall time of the steps in this process; after a kill, of the steps that were left.
        tokens_per_s: tokens of those steps over `seconds`.
        losses: training loss of each step, nats.
        learning_rates: learning rate of each step.
        peak_mib: largest growth of resident memory, or of the GPU's where one trains, from before the model was loaded to the end of
            the last step.
        trainable_parameters: parameters that the optimizer moved.
        held_out_losses: loss on held-out text by the steps done before, nats; empty where there was none.
        kept_step: steps done at the state that was kept.
        stopped: why training ended before its last step; "" where it did not.
        saving: what was done to save memory: none, give_back, checkpointing, low_bit_states.
    """

    steps: int
    tokens: int
    seconds: float
    tokens_per_s: float
    losses: tuple[float, ...]
    learning_rates: tuple[float, ...]
    peak_mib: float
    trainable_parameters: int
    held_out_losses: dict[int, float] = Field(default_factory=dict)
    kept_step: int | None = None
    stopped: str = ""
    saving: Saving = "none"
