"""The training loop: transformers' `Trainer` with our losses, resumable after SIGKILL.

The order of the sequences is fixed before the first step, so a resumed run sees what an undisturbed one
would have seen and ends at the same loss. The optimizer's state is pickled by torch; it lives in the
scratch folder only, is read back with `weights_only=True`, and is deleted with the last step. Nothing of it
is kept.
"""

import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
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
        scratch: resumed from if an earlier call with the same model, text and settings was killed; deleted
            at the end. The caller names it after those inputs.
        memory: running since before the model was loaded.

    Raises:
        TrainingError: a loss or gradient was not finite, or nothing is trainable.
    """
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if trainable == 0:
        raise TrainingError("no parameter is trainable; name linear layers of this model in target_modules")
    rows = [{"tokens": t, "positions": p} for t, p in zip(text.tokens, text.positions, strict=True)]
    watch = _Watch()
    trainer = _LossTrainer(
        loss, settings.autocast == "bf16", model, _arguments(settings, scratch), rows, watch
    )
    trainer.train(resume_from_checkpoint=_last_complete(scratch))
    shutil.rmtree(scratch, ignore_errors=True)
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


class _LossTrainer(Trainer):  # type: ignore[misc]
    """`Trainer` whose loss is ours and whose autocast covers the loss function's own forward passes."""

    def __init__(
        self,
        loss: BatchLoss,
        autocast: bool,
        model: Any,
        arguments: TrainingArguments,
        rows: list[dict[str, Tensor]],
        watch: "_Watch",
    ) -> None:
        super().__init__(model=model, args=arguments, train_dataset=rows, callbacks=[watch])
        self.remove_callback(PrinterCallback)  # it prints every step to stdout
        self._loss, self._autocast = loss, autocast

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self._autocast):
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
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(settings.warmup_fraction * settings.steps),
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch",
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
