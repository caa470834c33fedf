"""A real, smaller checkpoint made of some of a checkpoint's layers."""

from pathlib import Path
from typing import Any

from torch import nn

from tasks.store.artifact import Artifact
from tasks.training.checkpoint import inner, load_model, save_checkpoint
from tasks.training.error import TrainingError


def prune_layers(checkpoint: Artifact, keep: tuple[int, ...], out: Path) -> None:
    """Write a checkpoint of the layers `keep`, renumbered from 0; everything else stays as it is.

    Args:
        checkpoint: whose layers they are.
        keep: layer numbers, increasing.
        out: existing empty folder.

    Raises:
        TrainingError: `keep` is empty, not increasing, or names layers that do not exist.
    """
    model = load_model(checkpoint.folder, "auto")
    layers = layers_of(model)
    if not keep or list(keep) != sorted(set(keep)) or keep[0] < 0 or keep[-1] >= len(layers):
        raise TrainingError(f"layers to keep are {keep}; they must increase within 0..{len(layers) - 1}")
    inner(model).base_model.layers = nn.ModuleList(layers[number] for number in keep)
    layer: Any
    for place, layer in enumerate(layers_of(model)):
        layer.self_attn.layer_idx = place  # its slot in the KV cache
    model.config.num_hidden_layers = len(keep)
    if getattr(model.config, "layer_types", None) is not None:
        model.config.layer_types = [model.config.layer_types[number] for number in keep]
    save_checkpoint(model, checkpoint.folder, out)


def layers_of(model: Any) -> nn.ModuleList:
    """The blocks of a transformers decoder."""
    layers: nn.ModuleList = inner(model).base_model.layers
    return layers
