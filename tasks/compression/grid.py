"""A linear layer rounded to a grid: integers, scales and zero points, before any engine packs them.

What computes grids (rounding to nearest, GPTQ, ...) knows no engine; what writes them into a graph changes no number. So one
rounding is served alike by every engine.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.compression.error import CompressionError

GRID_FILE = "grids.safetensors"
_PARTS = ("codes", "scales", "zeros")


@dataclass(frozen=True)
class Grid:
    """One linear layer of N outputs and K inputs, in G groups of K / G inputs; a weight is scale * (code - zero).

    Attributes:
        bits: 4 or 8.
        codes: uint8, shape (N, K), 0 to 2^bits - 1.
        scales: float16, shape (N, G), as it is stored and multiplied.
        zeros: uint8, or float16 for zeros between the codes, shape (N, G); None for symmetric grids, whose zero is
            2^(bits - 1) everywhere.
    """

    bits: int
    codes: NDArray[np.uint8]
    scales: NDArray[np.float16]
    zeros: NDArray[np.uint8] | NDArray[np.float16] | None

    @property
    def group_size(self) -> int:
        """Inputs that share a scale."""
        return int(self.codes.shape[1] // self.scales.shape[1])

    @property
    def stored_bytes(self) -> int:
        """Bytes of integers, scales and zero points in an artifact."""
        return int(self.codes.size * self.bits // 8 + 2 * self.scales.size + self._zeros_bytes)

    @property
    def _zeros_bytes(self) -> int:
        if self.zeros is None:
            return 0
        return self.zeros.nbytes if self.zeros.dtype == np.float16 else self.zeros.size * self.bits // 8

    def weights(self) -> NDArray[np.float32]:
        """What an engine computes with, shape (N, K)."""
        outputs, groups = self.scales.shape
        zeros = 2 ** (self.bits - 1) if self.zeros is None else self.zeros.astype(np.float32)[..., None]
        codes = self.codes.reshape(outputs, groups, -1).astype(np.float32)
        return ((codes - zeros) * self.scales.astype(np.float32)[..., None]).reshape(self.codes.shape)


def joined_outputs(parts: Sequence[Grid], order: NDArray[np.int64]) -> Grid:
    """One grid of the outputs of several that share their inputs and format; `order` says where in them each output is, shape (N,)."""
    zeros: list[NDArray[Any]] = [part.zeros for part in parts if part.zeros is not None]
    return Grid(
        bits=parts[0].bits,
        codes=np.concatenate([part.codes for part in parts])[order],
        scales=np.concatenate([part.scales for part in parts])[order],
        zeros=np.concatenate(zeros)[order] if zeros else None,
    )


def save_grids(grids: Mapping[str, Grid], folder: Path) -> None:
    """Write the grids of a model, by the names of its linear layers ("model.layers.0.mlp.up_proj"), into `folder`."""
    from safetensors.numpy import save_file

    arrays: dict[str, NDArray[np.generic]] = {}
    for name, grid in grids.items():
        arrays |= {
            f"{name}.{grid.bits}.{part}": getattr(grid, part)
            for part in _PARTS
            if getattr(grid, part) is not None
        }
    save_file(arrays, folder / GRID_FILE)


def scale_count(folder: Path) -> int:
    """Scales of all grids that `save_grids` wrote; the file's header is read alone.

    Raises:
        CompressionError: the folder holds none.
    """
    from safetensors import safe_open

    with safe_open(_grid_file(folder), framework="numpy") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    return sum(math.prod(shape) for name, shape in shapes.items() if name.endswith(".scales"))


def load_grids(folder: Path) -> dict[str, Grid]:
    """The grids that `save_grids` wrote.

    Raises:
        CompressionError: the folder holds none.
    """
    from safetensors.numpy import load_file

    arrays = load_file(_grid_file(folder))
    grids = {}
    for key in arrays:
        layer, bits, part = key.rsplit(".", 2)
        if part == "codes":
            parts = {name: arrays.get(f"{layer}.{bits}.{name}") for name in _PARTS}
            grids[layer] = Grid(bits=int(bits), **parts)
    return grids


def _grid_file(folder: Path) -> Path:
    path = folder / GRID_FILE
    if not path.is_file():
        raise CompressionError(f"{folder.name} holds no {GRID_FILE}; build the grids first")
    return path
