"""A low-rank adapter as peft writes it, read for an engine that adds it to the weights it serves."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from tasks.engines.protocol import EngineUnavailable

WEIGHTS = "adapter_model.safetensors"
_PREFIX, _DOWN, _UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"

Factors = tuple[NDArray[np.float32], NDArray[np.float32]]
"""A, shape (R, I), and B with the adapter's scale, shape (O, R): a layer's output grows by `x @ A.T @ B.T`."""


def adapter_scale(folder: Path) -> float:
    """What the product of the two matrices is multiplied with.

    Raises:
        EngineUnavailable: the adapter changes more than a product can.
    """
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    if config.get("use_dora"):
        raise EngineUnavailable(
            f"{folder.name} is a DoRA adapter, which rescales the weights themselves; merge it, or train method: lora"
        )
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise EngineUnavailable(f"{folder.name} has ranks or scales by layer; merge it, or train it with one")
    rank = int(config["r"])
    return float(config["lora_alpha"]) / (rank**0.5 if config.get("use_rslora") else rank)


def read_adapter(folder: Path) -> Mapping[str, Factors]:
    """The factors of every adapted layer, by its name in the checkpoint ("model.layers.0.mlp.up_proj").

    Raises:
        EngineUnavailable: the adapter changes more than a product can.
    """
    scale = np.float32(adapter_scale(folder))
    tensors = load_file(folder / WEIGHTS)
    names = {key.removesuffix(end) for key in tensors for end in (_DOWN, _UP) if key.endswith(end)}
    if len(tensors) != 2 * len(names):
        raise EngineUnavailable(f"{folder.name} has tensors beside its LoRA factors; merge it")
    return {
        name.removeprefix(_PREFIX): (
            tensors[name + _DOWN].astype(np.float32),
            tensors[name + _UP].astype(np.float32) * scale,
        )
        for name in sorted(names)
    }
