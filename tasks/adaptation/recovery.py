"""Recovery of what rounding the weights lost: the scales of the integers that are served, trained with the source as teacher.

It starts from the challenger's own integers where GPTQ found them, from GPTQ's in the challenger's format else, and leaves them as
they are: each group's scale is multiplied by 1 + change, change starts at zero and learns (as in the second phase of EfficientQAT, Chen
et al. 2024, arXiv:2407.11062). So nothing is rounded again, and what was trained is what is served, but for the precision of scales
(float16) and of products (bfloat16, with autocast in training). Low-rank
adapters that move integers over rounding thresholds (LLM-QAT, Liu et al. 2023, arXiv:2305.17888) win less than GPTQ does without any
training, and little on top of it (docs/log.md).

The loss is the divergence from the source. Teacher and student are one model: with its own weights it is the teacher, so that no
second copy of all else is held.

Shapes: N outputs, K inputs, G groups of g = K / G inputs.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.training import TrainingSettings
from tasks.compression.grid import Grid, load_grids, save_grids, scale_count
from tasks.compression.layer_names import check_layers_exist
from tasks.models.checkpoint import read_architecture
from tasks.profiling.training_memory import TrainedScales
from tasks.store.artifact import Artifact
from tasks.training.checkpoint import head_weight, last_hidden, load_model, load_tokenizer
from tasks.training.device import training_memory
from tasks.training.log import TrainingLog
from tasks.training.loop import train
from tasks.training.losses import distillation, mean_loss
from tasks.training.memory_saving import RECOMPUTED, choose_saving, giving_back, with_saving
from tasks.training.packing import pack, pack_held_out


class GridLinear(nn.Module):
    """A frozen linear layer that computes with the integers of its grid and scales that learn, or, as teacher, with its own weight."""

    codes_NGg: Tensor
    zeros_NG1: Tensor
    scales_NG1: Tensor

    def __init__(self, linear: nn.Linear, grid: Grid, teacher: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().to(teacher), requires_grad=False)
        self.bias = linear.bias
        if self.bias is not None:
            self.bias.requires_grad_(False)
        self.grid, self.is_teacher = grid, False
        outputs, groups = grid.scales.shape
        zeros = np.full_like(grid.scales, 2 ** (grid.bits - 1)) if grid.zeros is None else grid.zeros
        # Whoever trains rebuilds them from the grid: a training checkpoint need not hold them.
        for name, values in (
            ("codes_NGg", grid.codes.reshape(outputs, groups, -1)),
            ("zeros_NG1", zeros[..., None].astype(np.float32)),
            ("scales_NG1", grid.scales[..., None].astype(np.float32)),
        ):
            self.register_buffer(name, torch.from_numpy(values), persistent=False)
        self.change_NG = nn.Parameter(torch.zeros(outputs, groups))

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output for x of shape (..., K)."""
        if self.is_teacher:
            return F.linear(x, self.weight, self.bias)
        weight_NK: Tensor = _Scaled.apply(self.change_NG, self.codes_NGg, self.zeros_NG1, self.scales_NG1)
        return F.linear(x, weight_NK.to(x.dtype), self.bias)

    def trained(self) -> Grid:
        """The grid with the scales as they are now."""
        scales_NG = self.scales_NG1[..., 0] * (1 + self.change_NG.detach())
        return Grid(
            bits=self.grid.bits,
            codes=self.grid.codes,
            scales=scales_NG.cpu().numpy().astype(np.float16),
            zeros=self.grid.zeros,
        )


def recover(
    checkpoint: Artifact,
    start: Path,
    texts: Sequence[str],
    training: TrainingSettings,
    out: Path,
    scratch: Path,
    held_out: Sequence[str] = (),
    max_mib: float | None = None,
) -> TrainingLog:
    """Train the scales of a rounded checkpoint and write its grids with the new ones.

    Embedding, output head and norms are the source's.

    Args:
        checkpoint: the source model, which is the teacher too.
        start: folder with the grids of its linear layers.
        texts: documents.
        training: steps, batch; the learning rate is that of a scale's relative change.
        out: existing empty folder for the grids.
        scratch: see `tasks.training.loop.train`.
        held_out: documents that are not trained on; the scales with the least divergence on them are kept, the first ones if need be.
        max_mib: most that training may add to the process's memory; None: the fastest way.

    Raises:
        CompressionError: a grid is of no layer of the checkpoint, or there is none.
        TrainingError: a limit that nothing fits into, or training diverged.
    """
    tokenizer = load_tokenizer(checkpoint.folder)
    text = pack(
        texts,
        tokenizer,
        training.sequence_tokens,
        training.steps * training.batch_sequences,
        training.seed,
    )
    watched = pack_held_out(held_out, tokenizer, training.sequence_tokens)
    saving = choose_saving(read_architecture(checkpoint), training, scales_of(start), max_mib)
    training = with_saving(training, saving)
    with giving_back(saving), training_memory() as memory:
        model = load_model(checkpoint.folder, torch.float32)
        # Autocast would cast a frozen weight anew in every step.
        teacher = torch.bfloat16 if training.autocast == "bf16" else torch.float32
        layers = use_grids(model, load_grids(start), teacher)
        if saving in RECOMPUTED:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        loss = _divergence_from_source(list(layers.values()))
        log = train(model, text, training, loss, scratch, memory, watched)
    save_grids({name: layer.trained() for name, layer in layers.items()}, out)
    shutil.rmtree(scratch, ignore_errors=True)
    return log.model_copy(update={"saving": saving})


def scales_of(grids: Path) -> TrainedScales:
    """How many scales a folder of grids has; their integers are not read.

    Raises:
        CompressionError: the folder holds none.
    """
    return TrainedScales(scale_count(grids))


def use_grids(
    model: Any, grids: Mapping[str, Grid], teacher: torch.dtype = torch.float32
) -> dict[str, GridLinear]:
    """Replace linear layers by their grids, by name; everything but the changes of scales is frozen.

    Args:
        model: of transformers.
        grids: by the names of its linear layers.
        teacher: type that the layers' own weights are held in.

    Raises:
        CompressionError: a grid is of no linear layer.
    """
    model.requires_grad_(False)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    check_layers_exist("a grid", grids, linears)
    layers = {}
    for name, grid in grids.items():
        layers[name] = GridLinear(linears.pop(name), grid, teacher)
        model.set_submodule(name, layers[name])
    if teacher != torch.float32:
        # A view of the mapped file would keep it resident, with the layers' weights as they were.
        for other in model.parameters():
            if other.dtype == torch.float32 and not other.requires_grad:
                other.data = other.data.clone()
    return layers


class _Scaled(torch.autograd.Function):
    """(code - zero) * scale * (1 + change), float32, shape (N, K). For the slope they are computed again."""

    @staticmethod
    def forward(
        ctx: Any, change_NG: Tensor, codes_NGg: Tensor, zeros_NG1: Tensor, scales_NG1: Tensor
    ) -> Tensor:
        ctx.save_for_backward(codes_NGg, zeros_NG1, scales_NG1)
        return _weights(codes_NGg, zeros_NG1, scales_NG1 * (1 + change_NG[..., None])).flatten(1)

    @staticmethod
    def backward(ctx: Any, slope_NK: Tensor) -> tuple[Tensor | None, ...]:
        codes_NGg, zeros_NG1, scales_NG1 = ctx.saved_tensors
        weights_NGg = _weights(codes_NGg, zeros_NG1, scales_NG1)
        return weights_NGg.mul_(slope_NK.reshape(codes_NGg.shape)).sum(-1), None, None, None


def _weights(codes_NGg: Tensor, zeros_NG1: Tensor, scales_NG1: Tensor) -> Tensor:
    # In place: at 100 million weights a step, fresh memory costs more than the arithmetic.
    return codes_NGg.float().sub_(zeros_NG1).mul_(scales_NG1)


def _divergence_from_source(layers: Sequence[GridLinear]) -> Any:
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
