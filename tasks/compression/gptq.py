"""Rounding one linear layer with its errors fed forward: GPTQ (Frantar et al., ICLR 2023, arXiv:2210.17323).

The columns of the weight are rounded one after another; what rounding a column does to the layer's output is made good by the
columns that are still to come, as the inverse Hessian of the squared output error says. Columns of large inputs come first; the
scales are fixed before, per group of neighbouring columns, so that the order leaves no trace in what is stored.

Scales are searched: of shrunken ranges (down to half), the one whose weighted squared error is least. A symmetric scale is signed, so
that its one unpaired level, -2^(bits - 1), falls on either side.
"""

import numpy as np
import torch
from torch import Tensor

from tasks.compression.error import CompressionError
from tasks.compression.grid import Grid

DAMPING = 0.01  # of the mean diagonal, as in the paper
_BLOCK_COLUMNS = 64
_RANGES = 20
_SMALLEST_RANGE = 0.5
_SMALLEST_SCALE = 2.0**-24  # the smallest float16 above 0


def round_layer(
    weight_NK: Tensor, hessian_KK: Tensor, *, bits: int, symmetric: bool, group_size: int
) -> Grid:
    """Round a weight so that the layer's output changes least on the inputs behind the Hessian.

    Args:
        weight_NK: float32, N outputs and K inputs.
        hessian_KK: sum over tokens of x x^T, weighted or not; float32.
        bits: 4 or 8.
        symmetric: no zero point.
        group_size: inputs that share a scale, dividing K; -1: all.

    Raises:
        CompressionError: groups do not fill the layer, or a number is not finite.
    """
    outputs, group = weight_NK.shape[0], _group(weight_NK, group_size)
    _check_finite(weight_NK, hessian_KK)
    hessian_KK = hessian_KK.clone()
    diagonal_K = hessian_KK.diagonal()
    diagonal_K[diagonal_K == 0] = 1  # an input that is always 0: its weight does not matter
    scales_NG, zeros_NG = _fit_scales(
        weight_NK.reshape(outputs, -1, group), diagonal_K.reshape(-1, group), bits, symmetric
    )
    order_K = torch.argsort(diagonal_K, descending=True, stable=True)
    back_K = torch.argsort(order_K)
    factor_KK = _inverse_factor(hessian_KK[order_K][:, order_K])
    of_column = order_K // group
    codes_KN = _feed_forward(
        weight_NK.T[order_K],
        factor_KK,
        scales_NG.T.contiguous(),
        zeros_NG.T.contiguous(),
        of_column,
        2**bits - 1,
    )
    codes_NK = codes_KN[back_K].T.contiguous()
    return _grid(codes_NK, scales_NG, None if symmetric else zeros_NG, bits)


def round_to_nearest(weight_NK: Tensor, *, bits: int, symmetric: bool, group_size: int) -> Grid:
    """Round a weight to the nearest codes of the scales that fit it best, no input being worth more than another.

    Args:
        weight_NK: float32, N outputs and K inputs.
        bits: 4 or 8.
        symmetric: no zero point.
        group_size: inputs that share a scale, dividing K; -1: all.

    Raises:
        CompressionError: groups do not fill the layer, or a number is not finite.
    """
    group = _group(weight_NK, group_size)
    _check_finite(weight_NK)
    weight_NGg = weight_NK.reshape(weight_NK.shape[0], -1, group)
    scales_NG, zeros_NG = _fit_scales(weight_NGg, torch.ones(weight_NGg.shape[1:]), bits, symmetric)
    codes_NGg = (weight_NGg / scales_NG[..., None] + zeros_NG[..., None]).round_().clamp_(0, 2**bits - 1)
    return _grid(codes_NGg.reshape(weight_NK.shape), scales_NG, None if symmetric else zeros_NG, bits)


def _group(weight_NK: Tensor, group_size: int) -> int:
    inputs = weight_NK.shape[1]
    group = inputs if group_size == -1 else group_size
    if inputs % group:
        raise CompressionError(f"group_size is {group_size}; it must divide the {inputs} inputs of the layer")
    return group


def _check_finite(*tensors: Tensor) -> None:
    if not all(torch.isfinite(tensor).all() for tensor in tensors):
        raise CompressionError(
            "a weight or an input of the calibration text is NaN or infinite; repair the checkpoint"
        )


def _grid(codes_NK: Tensor, scales_NG: Tensor, zeros_NG: Tensor | None, bits: int) -> Grid:
    return Grid(
        bits=bits,
        codes=codes_NK.to(torch.uint8).numpy(),
        scales=scales_NG.numpy().astype(np.float16),
        zeros=None if zeros_NG is None else zeros_NG.to(torch.uint8).numpy(),
    )


def _fit_scales(
    weight_NGg: Tensor, importance_Gg: Tensor, bits: int, symmetric: bool
) -> tuple[Tensor, Tensor]:
    """Scales (float16 values in float32) and zero points of every group, both of shape (N, G)."""
    top, middle = 2**bits - 1, 2.0 ** (bits - 1)
    low, high = weight_NGg.amin(-1).clamp(max=0), weight_NGg.amax(-1).clamp(min=0)
    reach = torch.maximum(-low, high)
    least, root_Gg = torch.full_like(low, torch.inf), importance_Gg.sqrt()
    best_scale, best_zero = torch.ones_like(low), torch.full_like(low, middle)
    for step in range(_RANGES):
        share = 1 - (1 - _SMALLEST_RANGE) * step / _RANGES
        for sign in (1, -1) if symmetric else (1,):
            scale = sign * reach * share / middle if symmetric else (high - low) * share / top
            scale = scale.half().float()
            scale = torch.where(scale.abs() < _SMALLEST_SCALE, torch.full_like(scale, _SMALLEST_SCALE), scale)
            zero = torch.full_like(low, middle) if symmetric else (-low * share / scale).round().clamp(0, top)
            exact = torch.addcdiv(zero[..., None], weight_NGg, scale[..., None])
            off = exact.round().clamp_(0, top).sub_(exact).mul_(root_Gg)
            error = torch.linalg.vector_norm(off, dim=-1).mul_(scale.abs())
            better = error < least
            least = torch.where(better, error, least)
            best_scale, best_zero = (
                torch.where(better, scale, best_scale),
                torch.where(better, zero, best_zero),
            )
    return best_scale, best_zero


def _inverse_factor(hessian_KK: Tensor) -> Tensor:
    """The upper Cholesky factor of the damped Hessian's inverse, float32."""
    damped = hessian_KK.clone()
    damped.diagonal().add_(DAMPING * damped.diagonal().mean())
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        factor_KK: Tensor = torch.linalg.cholesky(inverse, upper=True)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise CompressionError(
            "the calibration text does not tell the inputs of a layer apart; use more of it (calibration_samples), or "
            "another calibration"
        ) from error
    return factor_KK


def _feed_forward(
    weight_KN: Tensor, factor_KK: Tensor, scales_GN: Tensor, zeros_GN: Tensor, group_K: Tensor, top: int
) -> Tensor:
    """Codes of every column, shape (K, N): a column of the layer is a row here, whose values lie side by side.

    `weight_KN` is used up.
    """
    codes_KN, group_of = torch.empty_like(weight_KN), group_K.tolist()
    inputs, outputs = weight_KN.shape
    for first in range(0, inputs, _BLOCK_COLUMNS):
        last = min(first + _BLOCK_COLUMNS, inputs)
        errors = torch.empty(last - first, outputs)
        for column in range(first, last):
            group, weight = group_of[column], weight_KN[column]
            scale, zero = scales_GN[group], zeros_GN[group]
            codes = torch.div(weight, scale, out=codes_KN[column]).add_(zero).round_().clamp_(0, top)
            error = torch.sub(weight, (codes - zero).mul_(scale), out=errors[column - first])
            error.div_(factor_KK[column, column])
            weight_KN[column:last].addr_(factor_KK[column, column:last], error, alpha=-1)
        weight_KN[last:].addmm_(factor_KK[first:last, last:].T, errors, alpha=-1)
    return codes_KN
