"""Recovery of what rounding the weights lost: adapters trained against the rounded model.

Every linear layer computes with `round(W + s * B A)`: the very weights that the engine will have once the
merged checkpoint `W + s * B A` is compressed with the same settings. The gradient passes the rounding
unchanged (straight-through), so the adapter learns to move weights over the rounding thresholds that matter
(LLM-QAT, Liu et al. 2023, arXiv:2305.17888, made low-rank). The loss is the divergence from the source.
Teacher and student are one model: with rounding and adapters switched off it is the teacher, so no second
copy is held.
"""

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.training import TrainingSettings
from configs.weights import WeightSettings
from tasks.adaptation.rounding import check_roundable, straight_through
from tasks.store.artifact import Artifact
from tasks.training.checkpoint import (
    config_dtype,
    head_weight,
    last_hidden,
    load_model,
    load_tokenizer,
    save_checkpoint,
)
from tasks.training.device import training_memory
from tasks.training.error import TrainingError
from tasks.training.log import TrainingLog
from tasks.training.loop import train
from tasks.training.losses import distillation, mean_loss
from tasks.training.packing import pack

RANK = 32


class RoundedLinear(nn.Module):
    """A frozen linear layer that computes with its rounded, adapted weight, or, as teacher, with its own."""

    def __init__(self, linear: nn.Linear, bits: int, symmetric: bool, group_size: int, rank: int) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight.requires_grad_(False), linear.bias
        if self.bias is not None:
            self.bias.requires_grad_(False)
        self.bits, self.symmetric, self.group_size = bits, symmetric, group_size
        # A is random, B zero (LoRA): training starts at the rounding of W itself.
        self.a_RI = nn.Parameter(torch.randn(rank, linear.in_features) / linear.in_features**0.5)
        self.b_OR = nn.Parameter(torch.zeros(linear.out_features, rank))
        self.is_teacher = False

    def adapted(self) -> Tensor:
        """W + B A, float32, shape (O, I)."""
        with torch.autocast(self.weight.device.type, enabled=False):
            return self.weight.float() + self.b_OR @ self.a_RI

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output for x of shape (..., I)."""
        if self.is_teacher:
            return F.linear(x, self.weight, self.bias)
        weight = straight_through(self.adapted(), self.bits, self.symmetric, self.group_size)
        return F.linear(x, weight.to(x.dtype), self.bias)


def recover(
    checkpoint: Artifact,
    texts: Sequence[str],
    weights: WeightSettings,
    training: TrainingSettings,
    out: Path,
    scratch: Path,
    eight_bit: Collection[str] = (),
) -> TrainingLog:
    """Train against the rounding that `weights` does and write the full checkpoint to be compressed with it.

    Scales found by calibration are not followed: training sees the plain minimum-and-maximum rounding of
    the same levels and groups. The embedding is not rounded in training.

    Args:
        checkpoint: the source model, which is the teacher too.
        texts: documents.
        weights: the format to recover from.
        training: steps, batch, learning rate.
        out: existing empty folder for the checkpoint, in the source's dtype.
        scratch: see `tasks.training.loop.train`.
        eight_bit: names of the linear layers ("model.layers.0.mlp.up_proj") that the format keeps at 8 bits
            per channel; `eight_bit_layers` reads them from an artifact. Needed with `weights.int8_ratio`.

    Raises:
        TrainingError: the format rounds nothing, its groups do not fit, or training diverged.
    """
    if weights.int8_ratio and not eight_bit:
        raise TrainingError(
            f"weights.int8_ratio is {weights.int8_ratio}: name the "
            "layers that stay at 8 bits (eight_bit), or set it to 0"
        )
    torch.manual_seed(training.seed)
    text = pack(
        texts,
        load_tokenizer(checkpoint.folder),
        training.sequence_tokens,
        training.steps * training.batch_sequences,
        training.seed,
    )
    with training_memory() as memory:
        model = load_model(checkpoint.folder, torch.float32)
        layers = round_linear_layers(model, weights, eight_bit)
        log = train(model, text, training, _recovery_loss(layers), scratch, memory)
    restore_linear_layers(model)
    save_checkpoint(model.to(config_dtype(checkpoint.folder)), checkpoint.folder, out)
    shutil.rmtree(scratch, ignore_errors=True)
    return log


def round_linear_layers(
    model: Any, weights: WeightSettings, eight_bit: Collection[str] = ()
) -> list[RoundedLinear]:
    """Replace every linear layer except the output head; everything but the adapters is frozen."""
    model.requires_grad_(False)
    replaced = []
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear) or module is model.get_output_embeddings():
            continue
        check_roundable(weights, module.in_features, name)
        bits, group = (8, -1) if name in eight_bit else (weights.bits, weights.group_size)
        layer = RoundedLinear(module, bits, weights.symmetric, group, min(RANK, *module.weight.shape))
        model.set_submodule(name, layer)
        replaced.append(layer)
    return replaced


def restore_linear_layers(model: Any) -> None:
    """Put plain linear layers back, with W + B A as their weight."""
    for name, module in list(model.named_modules()):
        if isinstance(module, RoundedLinear):
            outputs, inputs = module.weight.shape
            linear = nn.Linear(inputs, outputs, bias=module.bias is not None, device="meta")
            linear.weight, linear.bias = nn.Parameter(module.adapted().detach()), module.bias
            model.set_submodule(name, linear)


def _recovery_loss(layers: list[RoundedLinear]) -> Any:
    def set_teacher(is_teacher: bool) -> None:
        for layer in layers:
            layer.is_teacher = is_teacher

    def loss(model: nn.Module, tokens_BT: Tensor, positions_BT: Tensor) -> Tensor:
        set_teacher(True)
        with torch.no_grad():
            teacher_ND = last_hidden(model, tokens_BT[:, :-1], positions_BT)
        set_teacher(False)
        student_ND = last_hidden(model, tokens_BT[:, :-1], positions_BT)
        head_VD = head_weight(model).detach()
        targets_N = tokens_BT[:, 1:].flatten()
        divergence = distillation(
            targets_N, teacher_ND, head_VD.to(teacher_ND.dtype), temperature=1.0, alpha=0.0
        )
        return mean_loss(student_ND, head_VD, divergence)

    return loss
