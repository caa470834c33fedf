"""Recovery of what rounding the weights lost: the served grids are trained, with the source as teacher.

Training starts at the very integers and scales that are served, however they were found (to nearest, GPTQ, NNCF's methods), and
every forward pass computes with what would be served then (`tasks.adaptation.grid_layer`). Norms, which stay in float, are
trained too. The loss is the divergence from the source on packed text. The result is a checkpoint that carries its grids: it is
built into an artifact without being rounded again.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.schema import TrainingSettings
from tasks.adaptation.grid_layer import GridLinear, ScaledNorm
from tasks.compression.grid import Grid, save_grids
from tasks.serving.memory_peak import MemoryPeak
from tasks.store.artifact import Artifact
from tasks.training.checkpoint import head_weight, last_hidden, load_model, load_tokenizer, save_checkpoint
from tasks.training.error import TrainingError
from tasks.training.log import TrainingLog
from tasks.training.loop import train
from tasks.training.losses import distillation, mean_loss
from tasks.training.packing import pack, pack_held_out

RANK = 32


def recover(
    checkpoint: Artifact,
    texts: Sequence[str],
    served: Callable[[], Mapping[str, Grid]],
    training: TrainingSettings,
    out: Path,
    scratch: Path,
    held_out: Sequence[str] = (),
) -> TrainingLog:
    """Train grids and write a checkpoint that computes with them, float32, and the grids beside it.

    Args:
        checkpoint: the source model, which is the teacher too.
        texts: documents.
        served: gives the grids that training starts from, by the names of the linear layers.
        training: steps, batch, learning rate (a relative step of the scales; see `grid_layer.LEVELS`).
        out: existing empty folder.
        scratch: see `tasks.training.loop.train`.
        held_out: documents that are not trained on; the state with the least divergence on them is kept.

    Raises:
        TrainingError: a grid does not fit its layer, too little text, or training diverged.
    """
    torch.manual_seed(training.seed)
    tokenizer = load_tokenizer(checkpoint.folder)
    count = training.steps * training.batch_sequences
    text = pack(texts, tokenizer, training.sequence_tokens, count, training.seed)
    watched = pack_held_out(held_out, tokenizer, training.sequence_tokens)
    with MemoryPeak() as memory:
        model = load_model(checkpoint.folder, torch.float32)
        make_trainable(model, served())
        loss = divergence_from(_teacher(checkpoint.folder, training))
        log = train(model, text, training, loss, scratch, memory, watched)
    save_grids(restore_layers(model), out)
    save_checkpoint(model, checkpoint.folder, out)
    shutil.rmtree(scratch, ignore_errors=True)
    return log


def make_trainable(model: Any, grids: Mapping[str, Grid]) -> None:
    """Put grids in the places of a model's linear layers, and make its norms trainable; all else is frozen.

    Raises:
        TrainingError: a grid is of no layer, or of another shape.
    """
    model.requires_grad_(False)
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for name, grid in grids.items():
        if name not in linear or linear[name].weight.shape != grid.codes.shape:
            raise TrainingError(
                f"the artifact has a layer {name} of {grid.codes.shape}, the source has none such; recover from an artifact that was "
                "made from this source"
            )
        layer = linear[name]
        model.set_submodule(name, GridLinear(grid, layer.weight, layer.bias, min(RANK, *grid.codes.shape)))
    for name, module in list(model.named_modules()):
        if "Norm" in type(module).__name__ and _is_proportional(module):
            model.set_submodule(name, ScaledNorm(module))


@torch.no_grad()
def _is_proportional(norm: nn.Module) -> bool:
    """Whether a norm's output is its weight times something: no bias, and not 1 + weight, as some families have it."""
    weight = getattr(norm, "weight", None)
    if weight is None or getattr(norm, "bias", None) is not None:
        return False
    probe = torch.linspace(-1, 1, weight.shape[0])[None]
    before, kept = norm(probe), weight.data.clone()
    weight.data.mul_(2)
    after = norm(probe)
    weight.data.copy_(kept)
    return torch.allclose(after, 2 * before, rtol=1e-4)


def restore_layers(model: Any) -> dict[str, Grid]:
    """Put plain layers back, with the weights that are served; returns the grids."""
    grids = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, GridLinear):
            grids[name] = module.grid()
            outputs, inputs = grids[name].codes.shape
            linear = nn.Linear(inputs, outputs, bias=module.bias is not None, device="meta")
            linear.weight, linear.bias = nn.Parameter(torch.from_numpy(grids[name].weights())), module.bias
            model.set_submodule(name, linear)
        elif isinstance(module, ScaledNorm):
            model.set_submodule(name, module.merged())
    return grids


def divergence_from(teacher: Any) -> Any:
    """The loss of a batch: mean KL of a model's next-token distribution from the teacher's, nats."""

    def loss(model: nn.Module, tokens_BT: Tensor, positions_BT: Tensor) -> Tensor:
        teacher.to(tokens_BT.device)
        with torch.no_grad():
            teacher_ND = last_hidden(teacher, tokens_BT[:, :-1], positions_BT)
        student_ND = last_hidden(model, tokens_BT[:, :-1], positions_BT)
        teacher_head_VD = head_weight(teacher).to(teacher_ND.dtype)
        targets_N = tokens_BT[:, 1:].flatten()
        chunks = distillation(targets_N, teacher_ND, teacher_head_VD, temperature=1.0, alpha=0.0)
        return mean_loss(student_ND, head_weight(model).detach(), chunks)

    return loss


def _teacher(folder: Path, training: TrainingSettings) -> Any:
    dtype = torch.bfloat16 if training.autocast == "bf16" else torch.float32
    return load_model(folder, dtype).requires_grad_(False)
