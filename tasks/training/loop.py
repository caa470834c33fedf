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

from configs.training import TrainingSettings
from tasks.serving.memory_peak import MemoryPeak
from tasks.training.checkpoint_disk import CheckpointDisk
from tasks.training.device import training_device
from tasks.training.error import TrainingError
from tasks.training.held_out import HeldOut
from tasks.training.log import TrainingLog
from tasks.training.packing import PackedText

# The loss of a batch: tokens (B, T + 1) and positions (B, T) to a scalar.
BatchLoss = Callable[[nn.Module, Tensor, Tensor], Tensor]
RateRatio = Callable[[str], float]


def train(
    model: Any,
    text: PackedText,
    settings: TrainingSettings,
    loss: BatchLoss,
    scratch: Path,
    memory: MemoryPeak,
    held_out: PackedText | None = None,
    rate_ratio: RateRatio = lambda name: 1.0,
) -> TrainingLog:
    """Train the parameters of `model` that require a gradient; the model holds the result.

    With held-out text the result is the state with the least loss on it: training ends early where that no longer falls, and where a
    loss or gradient is not finite the last good state stands. Without, the last step counts, and such a number is an error.

    Args:
        model: a transformers or peft model.
        text: `settings.steps * settings.batch_sequences` sequences.
        settings: see there; AdamW without weight decay, gradients clipped at norm 1. Embeddings and tensors below 4,096
            values keep states of 32 bits.
        loss: of one batch.
        scratch: resumed from if an earlier call with the same model, text and settings was killed. The
            caller names it after those inputs, and deletes it once the result is written.
        memory: running since before the model was loaded.
        held_out: sequences that are not trained on; None: nothing is looked at.
        rate_ratio: learning rate of a parameter over that of the settings, by its name.

    Raises:
        TrainingError: a loss or gradient was not finite and there is no good state, or nothing is trainable.
        StoreError: the disk is too small for its checkpoints.
    """
    if settings.autocast == "auto":
        raise ValueError("autocast: auto has to be decided for this machine before anything is trained")
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if trainable == 0:
        raise TrainingError("no parameter is trainable; name linear layers of this model in target_modules")
    rows = [{"tokens": t, "positions": p} for t, p in zip(text.tokens, text.positions, strict=True)]
    watch = _Watch()
    trainer = _LossTrainer(loss, settings, model, scratch, rows, rate_ratio)
    trainer.add_callback(CheckpointDisk(model, settings, scratch, looks=held_out is not None))
    looks = None if held_out is None else _held_out(trainer, model, held_out, scratch)
    trainer.add_callback(watch)  # after the looks, whose time is not that of the steps
    stopped = ""
    try:
        trainer.train(resume_from_checkpoint=_last_complete(scratch))
    except _Diverged as error:
        if looks is None or looks.best == 0:
            raise
        stopped = str(error)
    if looks is not None:
        looks.restore()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    step_tokens = settings.batch_sequences * settings.sequence_tokens
    done = trainer.state.global_step
    if not stopped and done < settings.steps:
        stopped = f"the held-out loss has not fallen for {settings.patience} looks"
    seconds = watch.seconds - (looks.seconds if looks else 0.0)
    return TrainingLog(
        steps=done,
        tokens=done * step_tokens,
        seconds=seconds,
        tokens_per_s=watch.steps * step_tokens / seconds if watch.steps else 0.0,
        losses=tuple(float(entry["loss"]) for entry in steps),
        learning_rates=tuple(float(entry["learning_rate"]) for entry in steps),
        peak_mib=memory.growth_bytes / 2**20,
        trainable_parameters=trainable,
        held_out_losses={} if looks is None else {k: v for k, v in looks.looks.items() if math.isfinite(v)},
        kept_step=done if looks is None else looks.best,
        stopped=stopped,
    )


def rate_fraction(step: int, steps: int, warmup_steps: int) -> float:
    """Share of the peak learning rate at a step (from 0): linear warm-up, then linearly to zero after the last.

    A straight line is the schedule whose last iterate has the best known bound (Defazio et al. 2023, arXiv:2310.07831), and it trained
    better than a cosine here, too (docs/log.md). transformers' own warm-up has rate 0 at the first step: a twelfth of a
    twelve-step training for nothing.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return 1 - (step - warmup_steps) / max(1, steps - warmup_steps)


class _Diverged(TrainingError):
    """A loss or gradient was not finite."""


class _LossTrainer(Trainer):  # type: ignore[misc]
    """`Trainer` with our loss and learning rates; autocast covers all that the loss computes."""

    def __init__(
        self,
        loss: BatchLoss,
        settings: TrainingSettings,
        model: Any,
        scratch: Path,
        rows: list[dict[str, Tensor]],
        rate_ratio: RateRatio,
    ) -> None:
        super().__init__(model=model, args=_arguments(settings, scratch), train_dataset=rows)
        self.remove_callback(PrinterCallback)  # it prints every step to stdout
        self._loss, self.settings, self._rate_ratio = loss, settings, rate_ratio

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Trainer's own, its groups divided by the rate of their parameters; the logged rate is that of the slowest."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        ratios = {parameter: self._rate_ratio(name) for name, parameter in self.model.named_parameters()}
        optimizer.param_groups[:] = [
            group
            | {
                "params": [each for each in group["params"] if ratios[each] == ratio],
                "lr": group["lr"] * ratio,
            }
            for group in optimizer.param_groups
            for ratio in sorted({ratios[each] for each in group["params"]})
        ]
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        warmup_steps = math.ceil(self.settings.warmup_fraction * num_training_steps)
        self.lr_scheduler = LambdaLR(
            optimizer or self.optimizer,
            partial(rate_fraction, steps=num_training_steps, warmup_steps=warmup_steps),
        )
        return self.lr_scheduler

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
        loss = self.loss_of(model, inputs["tokens"], inputs["positions"])
        if not torch.isfinite(loss):
            raise _Diverged(_diverged("loss", loss.item(), self.state.global_step))
        return loss

    def loss_of(self, model: nn.Module, tokens_BT: Tensor, positions_BT: Tensor) -> Tensor:
        """The loss of a batch in the precision that is trained in."""
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.settings.autocast == "bf16"):
            return self._loss(model, tokens_BT, positions_BT)


def _held_out(trainer: _LossTrainer, model: nn.Module, text: PackedText, scratch: Path) -> HeldOut:
    """Looks at the loss on held-out text, added to the trainer."""
    settings = trainer.settings
    batches = [
        (tokens.to(trainer.args.device), positions.to(trainer.args.device))
        for tokens, positions in zip(
            torch.split(text.tokens, settings.batch_sequences),
            torch.split(text.positions, settings.batch_sequences),
            strict=True,
        )
    ]

    @torch.no_grad()
    def loss() -> float:
        # In evaluation mode bitsandbytes (0.50) packs NF4 weights for inference on the CPU, which no training step can use.
        model.train()
        total = sum(
            trainer.loss_of(model, tokens, positions).item() * len(tokens) for tokens, positions in batches
        )
        return total / len(text.tokens)

    looks = HeldOut(model, loss, settings, scratch)
    trainer.add_callback(looks)
    return looks


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
            raise _Diverged(_diverged("gradient norm", norm, state.global_step))


def _diverged(what: str, value: float, step: int) -> str:
    way_out = "lower learning_rate of its training settings, or set autocast: none there"
    return f"the {what} at step {step} is {value}; {way_out}"


def _arguments(settings: TrainingSettings, scratch: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(scratch),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_sequences,
        learning_rate=settings.learning_rate,
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch_fused" if settings.optimizer_bits == 32 else "adamw_bnb_8bit",
        train_sampling_strategy="sequential",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=settings.checkpoint_steps,
        save_total_limit=1,
        seed=settings.seed,
        use_cpu=training_device() == "cpu",
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
