"""The tensors of a checkpoint, one at a time, and which of them are linear layers of the decoder's blocks."""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from tasks.models.checkpoint_folder import weight_files


def tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a checkpoint, by name."""
    from safetensors import safe_open

    for shard in weight_files(folder):
        with safe_open(folder / shard, framework="pt") as file:
            for name in sorted(file.keys()):
                yield name, file.get_tensor(name)


def is_linear(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is the weight of a linear layer inside the blocks."""
    return ".layers." in name and name.endswith(".weight") and tensor.ndim == 2


def linear_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The linear layers of the blocks by name ("model.layers.0.mlp.up_proj"), float32, shape (N, K)."""
    for name, tensor in tensors(folder):
        if is_linear(name, tensor):
            yield name.removesuffix(".weight"), tensor.float()
