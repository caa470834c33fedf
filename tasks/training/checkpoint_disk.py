"""Disk that the checkpoints of a training take: asked for before the first step, and before each of them is written.

torch finds a full disk in the middle of a file and says no more than that a position is unexpected, after hours perhaps.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback

from configs.training import TrainingSettings
from tasks.store.errors import StoreError

_SMALL = 4096
"""Values of a tensor below which bitsandbytes keeps states of 32 bits, as transformers has it do for embeddings."""


class CheckpointDisk(TrainerCallback):  # type: ignore[misc]
    """Ends training with one line before a checkpoint would not fit; the last one that was written stands, and is resumed from."""

    def __init__(self, model: nn.Module, settings: TrainingSettings, scratch: Path, looks: bool) -> None:
        """Nothing is asked yet.

        Args:
            model: on the processor or the GPU; its parameters' sizes count.
            settings: how often there is a checkpoint, and the bits of the optimizer's states.
            scratch: where the checkpoints go.
            looks: whether the best state is kept beside them.
        """
        self._settings, self._scratch = settings, scratch
        self._checkpoint_bytes = checkpoint_bytes(model, settings.optimizer_bits)
        self._best_bytes = _bytes(each for each in model.parameters() if each.requires_grad) if looks else 0

    def on_train_begin(self, _: Any, state: Any, __: Any, **___: Any) -> None:
        """Room for all that lies there at once: a new checkpoint beside the last, and the best state beside its successor."""
        written = -(-(self._settings.steps - state.global_step) // self._settings.checkpoint_steps)
        there = state.global_step > 0
        self._check((min(written, 2) - there) * self._checkpoint_bytes + 2 * self._best_bytes)

    def on_step_end(self, _: Any, __: Any, control: Any, **___: Any) -> None:
        """Room for one checkpoint, where one comes now."""
        if control.should_save:
            self._check(self._checkpoint_bytes)

    def _check(self, needed_bytes: int) -> None:
        self._scratch.mkdir(parents=True, exist_ok=True)
        free_bytes = shutil.disk_usage(self._scratch).free
        if needed_bytes > free_bytes:
            raise StoreError(
                f"checkpoint_steps of the training is {self._settings.checkpoint_steps}: its checkpoints need "
                f"{needed_bytes / 2**20:.0f} MiB under {self._scratch}, {free_bytes / 2**20:.0f} MiB are free; free some "
                "disk, set KEIRYO_HOME to a larger one, or train fewer parameters"
            )


def checkpoint_bytes(model: Any, optimizer_bits: int) -> int:
    """Size of one training checkpoint: the weights (of a peft model its adapters alone) and AdamW's two states.

    Args:
        model: what is trained.
        optimizer_bits: 32 or 8, of the states.
    """
    trainable: list[nn.Parameter] = [each for each in model.parameters() if each.requires_grad]
    tables = {id(each.weight) for each in model.modules() if isinstance(each, nn.Embedding)}
    exact = [
        each for each in trainable if optimizer_bits == 32 or each.numel() < _SMALL or id(each) in tables
    ]
    values, exact_values = (sum(each.numel() for each in part) for part in (trainable, exact))
    states = 2 * (values + 3 * exact_values)  # a byte each, or four
    kept = trainable if hasattr(model, "peft_config") else list(model.parameters())
    return states + _bytes(kept)


def _bytes(parameters: Iterable[nn.Parameter]) -> int:
    return sum(each.numel() * each.element_size() for each in parameters)
