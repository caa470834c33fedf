"""What a safetensors file holds, read from its header alone."""

import math
from pathlib import Path
from typing import NamedTuple

from tasks.models.errors import ModelSourceError


class TensorInfo(NamedTuple):
    """One tensor: dtype as safetensors names it ("F32", "BF16", ...) and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


def read_tensors(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a file, by name. The header is checked against the file's size; no weights are read.

    Raises:
        ModelSourceError: the file is truncated, has surplus bytes, or is no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no dict)
            return {name: TensorInfo(s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ModelSourceError(
            f"{path}: not a whole safetensors file ({error}); fetch or export the file again"
        ) from error
