"""The grid that a source's weights lie on already: a checkpoint that was made from rounded weights keeps their integers.

A GGUF of 4 bits, dequantized to be a checkpoint, has 16 values a group of 32 inputs, evenly spaced, at any offset (Q4_1: d * q + m,
ggml-common.h of llama.cpp). Rounded to another grid it loses as much as it lost the first time; on its own it loses what float16 takes
of scale and offset. The offset falls between the codes, so that zero points are real numbers.
"""

from functools import reduce
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from configs.weights import WeightSettings
from tasks.compression.checkpoint_layers import linear_weights
from tasks.compression.error import CompressionError
from tasks.compression.gptq import check_finite, inputs_of_group, round_to_nearest
from tasks.compression.grid import Grid, save_grids
from tasks.compression.layer_names import check_layers_exist
from tasks.store.artifact import Artifact

_TOP = 15
_OFF_GRID = 0.1
"""Of a step: how far a weight may lie from its code, so that a checkpoint in bfloat16 counts. A random group of 32 has one chance in
10^20."""

_FEW_OUTPUTS = 8


def check_source_grid(checkpoint: Artifact, group_size: int) -> None:
    """Refuse a source that was never rounded to 4 bits in these groups; the first layer on a grid is enough.

    Raises:
        CompressionError: no linear layer lies on one.
    """
    count = 0
    for _, weight in linear_weights(checkpoint.folder):
        if find_grid(weight, group_size) is not None:
            return
        count += 1
    raise CompressionError(
        f"calibration is source_grid and none of the source's {count} linear layers lies on a 4-bit grid in groups of {group_size}; it "
        "is for sources that were rounded before, in these groups (a GGUF); use calibration: gptq"
    )


def layers_off_grid(checkpoint: Artifact, group_size: int) -> tuple[str, ...]:
    """The linear layers that lie on no 4-bit grid, by name.

    Raises:
        CompressionError: none lies on one.
    """
    check_source_grid(checkpoint, group_size)
    layers = linear_weights(checkpoint.folder)
    return tuple(sorted(name for name, weight in layers if find_grid(weight, group_size) is None))


def write_source_grids(
    checkpoint: Artifact, weights: WeightSettings, out: Path, *, eight_group: int = -1
) -> None:
    """Write the grids that a checkpoint's linear layers lie on into `out`; `int8_layers` are rounded to the nearest of 8 bits.

    Args:
        checkpoint: safetensors.
        weights: 4 bits; `int8_layers` names all that lie on no grid.
        out: an existing, empty folder.
        eight_group: inputs that share a scale in `int8_layers`; -1: one scale an output channel.

    Raises:
        CompressionError: a layer does not exist, or lies on no grid.
    """
    grids = {
        name: _kept(name, weight, weights, eight_group) for name, weight in linear_weights(checkpoint.folder)
    }
    check_layers_exist("int8_layers", weights.int8_layers, grids)
    save_grids(grids, out)


def find_grid(weight_NK: Tensor, group_size: int) -> Grid | None:
    """The 4-bit grid of a weight, or None where some group of it lies on none.

    Args:
        weight_NK: float32, N outputs and K inputs.
        group_size: inputs that share a scale.

    Raises:
        CompressionError: groups do not fill the layer, or a number is not finite.
    """
    group = inputs_of_group(weight_NK, group_size)
    check_finite(weight_NK)
    if len(weight_NK) > _FEW_OUTPUTS and find_grid(weight_NK[:_FEW_OUTPUTS], group) is None:
        return None  # as a rule none is, and that is seen at once
    weight_NGg = weight_NK.reshape(len(weight_NK), -1, group)
    low, high = weight_NGg.amin(-1), weight_NGg.amax(-1)
    is_flat = low == high  # one value: between it and 0 there is a grid
    low, high = torch.where(is_flat, low.clamp(max=0), low), torch.where(is_flat, high.clamp(min=0), high)
    reach = torch.where(low == high, torch.ones_like(low), high - low)
    scales = _steps(weight_NGg - low[..., None], reach).half()
    if not (torch.isfinite(scales) & (scales > 0)).all():
        return None
    zeros = (-low / scales.float()).half()
    codes_NGg = (weight_NGg / scales.float()[..., None] + zeros.float()[..., None]).round_().clamp_(0, _TOP)
    grid = Grid(
        bits=4,
        codes=codes_NGg.reshape(weight_NK.shape).to(torch.uint8).numpy(),
        scales=scales.numpy(),
        zeros=zeros.numpy(),
    )
    off = np.abs(grid.weights() - weight_NK.numpy()).reshape(weight_NGg.shape).max(-1)
    return grid if (off <= _OFF_GRID * scales.float().numpy()).all() else None


def _steps(above_NGg: Tensor, reach_NG: Tensor) -> Tensor:
    """The distance of neighbouring codes in every group, from weights above the least of them and their range; 0: no grid."""
    groups, reach = above_NGg.reshape(-1, above_NGg.shape[-1]), reach_NG.reshape(-1)
    steps, left = torch.zeros_like(reach), torch.arange(len(reach))
    for levels in range(_TOP, 0, -1):
        step = reach[left] / levels
        place = groups[left] / step[:, None]
        fits = ((place - place.round()).abs() <= _OFF_GRID).all(-1)
        common = reduce(torch.gcd, place[fits].round().int().unbind(-1))  # a grid with fewer levels
        steps[left[fits]] = step[fits] * common.clamp(min=1)
        left = left[~fits]
    return steps.reshape(reach_NG.shape)


def _kept(name: str, weight_NK: Tensor, weights: WeightSettings, eight_group: int) -> Grid:
    if name in weights.int8_layers:
        return round_to_nearest(weight_NK, bits=8, symmetric=False, group_size=eight_group)
    grid = find_grid(weight_NK, weights.group_size)
    if grid is None:
        raise CompressionError(
            f"calibration is source_grid and layer {name} lies on no 4-bit grid in groups of {weights.group_size}; name it in "
            "int8_layers, or use calibration: gptq"
        )
    return grid
