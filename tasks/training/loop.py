"""The training loop: transformers' `Trainer` with our losses, resumable after SIGKILL.

The order of the sequences is fixed before the first step, so a resumed run sees what an undisturbed one
would have seen and ends at the same loss. The optimizer's state is pickled by torch; it lives in the
scratch folder only, is read back with `weights_only=True`, and is deleted once the result is written.
Nothing of it is kept.
"""

import json
import math
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from configs.schema import TrainingSettings
from tasks.serving.memory_peak import MemoryPeak
from tasks.training.error import TrainingError
from tasks.training.log import TrainingLog
from tasks.training.packing import PackedText

# The loss of a batch: tokens (B, T + 1) and positions (B, T) to a scalar.
BatchLoss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def train(
    model: Any,
    text: PackedText,
    settings: TrainingSettings,
    loss: BatchLoss,
    scratch: Path,
    memory: MemoryPeak,
) -> TrainingLog:
    """Train the parameters of `model` that require a gradient; the model holds the result.

    Args:
        model: a transformers or peft model.
        text: `settings.steps * settings.batch_sequences` sequences.
        settings: see there; AdamW without weight decay, gradients clipped at norm 1.
        loss: of one batch.
        scratch: resumed from if an earlier call with the same model, text and settings was killed. The
            caller names it after those inputs, and deletes it once the result is written.
        memory: running since before the model was loaded.

    Raises:
        TrainingError: a loss or gradient was not finite, or nothing is trainable.
    """
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if trainable == 0:
        raise TrainingError("no parameter is trainable; name linear layers of this model in target_modules")
    rows = [{"tokens": t, "positions": p} for t, p in zip(text.tokens, text.positions, strict=True)]
    watch = _Watch()
    trainer = _LossTrainer(loss, settings, model, scratch, rows, watch)
    trainer.train(resume_from_checkpoint=_last_complete(scratch))
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    step_tokens = settings.batch_sequences * settings.sequence_tokens
    return TrainingLog(
        steps=settings.steps,
        tokens=settings.steps * step_tokens,
        seconds=watch.seconds,
        tokens_per_s=watch.steps * step_tokens / watch.seconds if watch.steps else 0.0,
        losses=tuple(float(entry["loss"]) for entry in steps),
        learning_rates=tuple(float(entry["learning_rate"]) for entry in steps),
        peak_mib=memory.growth_bytes / 2**20,
        trainable_parameters=trainable,
    )


def rate_fraction(step: int, steps: int, warmup_steps: int) -> float:
    """Share of the peak learning rate at a step (from 0): linear warm-up, then cosine to zero after the last.

    transformers' own warm-up has rate 0 at the first step: a twelfth of a twelve-step training for nothing.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps))) / 2


class _LossTrainer(Trainer):  # type: ignore[misc]
    """`Trainer` with our loss and learning rates; autocast covers all that the loss computes."""

    def __init__(
        self,
        loss: BatchLoss,
        settings: TrainingSettings,
        model: Any,
        scratch: Path,
        rows: list[dict[str, Tensor]],
        watch: "_Watch",
    ) -> None:
        super().__init__(
            model=model, args=_arguments(settings, scratch), train_dataset=rows, callbacks=[watch]
        )
        self.remove_callback(PrinterCallback)  # it prints every step to stdout
        self._loss, self._settings = loss, settings

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        warmup_steps = math.ceil(self._settings.warmup_fraction * num_training_steps)
        self.lr_scheduler = LambdaLR(
            optimizer or self.optimizer,
            partial(rate_fraction, steps=num_training_steps, warmup_steps=warmup_steps),
        )
        return self.lr_scheduler

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self._settings.autocast == "bf16"):
            loss = self._loss(model, inputs["tokens"], inputs["positions"])
        if not torch.isfinite(loss):
            raise TrainingError(_diverged("loss", loss.item(), self.state.global_step))
        return loss


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Stops at a gradient that is not finite; times the steps of this process."""

    def __init__(self) -> None:
        self.steps, self.seconds = 0, 0.0
        self._begin = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._begin = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.steps += 1
        self.seconds = time.perf_counter() - self._begin

    def on_log(self, _: Any, state: Any, __: Any, logs: dict[str, float] | None = None, **___: Any) -> None:
        norm = (logs or {}).get("grad_norm")
        if norm is not None and not math.isfinite(norm):
            raise TrainingError(_diverged("gradient norm", norm, state.global_step))


def _diverged(what: str, value: float, step: int) -> str:
    way_out = "lower training.learning_rate, or set training.autocast to none"
    return f"the {what} at step {step} is {value}; {way_out}"


def _arguments(settings: TrainingSettings, scratch: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(scratch),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_sequences,
        learning_rate=settings.learning_rate,
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        train_sampling_strategy="sequential",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=settings.checkpoint_steps,
        save_total_limit=1,
        seed=settings.seed,
        use_cpu=not torch.cuda.is_available(),
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        report_to="none",
        disable_tqdm=True,
    )


def _last_complete(scratch: Path) -> str | None:
    """The newest checkpoint that was written to its end; `trainer_state.json` is the last file of each."""
    folders = sorted(
        scratch.glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]), reverse=True
    )
    for folder in folders:
        try:
            json.loads((folder / "trainer_state.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            shutil.rmtree(folder)  # the process died while it wrote this one
        else:
            return str(folder)
    return None
