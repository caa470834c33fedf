"""Rounding one linear layer with its errors fed forward: GPTQ (Frantar et al., ICLR 2023, arXiv:2210.17323).

The columns of the weight are rounded one after another; what rounding a column does to the layer's output is made good by the
columns that are still to come, as the inverse Hessian of the squared output error says. Columns of large inputs come first; the
scales are fixed before, per group of neighbouring columns, so that the order leaves no trace in what is stored. What was rounded early
did not know what came later: each column is then looked at again, all others as they are, and takes the code that is best now
(coordinate descent, as in QuantEase, Behdin et al. 2023, arXiv:2309.01885).

Scales are searched: of shrunken ranges (down to half), the one whose weighted squared error is least. A symmetric scale is signed, so
that its one unpaired level, -2^(bits - 1), falls on either side.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tasks.compression.error import CompressionError
from tasks.compression.grid import Grid

DAMPING = 0.05  # of the mean diagonal. The paper has 0.01, which fits the calibration text too closely (docs/log.md)
_SWEEPS = {4: 2, 8: 0}  # by bits; at 8 there is little to win
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
    return round_outputs(
        weight_NK, prepare_inputs(weight_NK, hessian_KK, group_size), bits=bits, symmetric=symmetric
    )


@dataclass(frozen=True)
class Inputs:
    """What a layer's inputs say, made ready once for all of its outputs.

    Attributes:
        group: inputs that share a scale.
        diagonal_K: of the Hessian; a dead input has the mean of the others.
        order_K: of the columns, those of large inputs first.
        hessian_KK: damped, in that order.
        factor_KK: upper Cholesky factor of its inverse.
    """

    group: int
    diagonal_K: Tensor
    order_K: Tensor
    hessian_KK: Tensor
    factor_KK: Tensor


def prepare_inputs(weight_NK: Tensor, hessian_KK: Tensor, group_size: int) -> Inputs:
    """Damp and order the Hessian of a layer's inputs. Arguments and errors are those of `round_layer`."""
    group = inputs_of_group(weight_NK, group_size)
    check_finite(weight_NK, hessian_KK)
    hessian_KK = hessian_KK.clone()
    diagonal_K = hessian_KK.diagonal()
    is_dead_K = diagonal_K == 0  # an input that is always 0: its weight does not matter
    diagonal_K[is_dead_K] = 1.0 if is_dead_K.all() else diagonal_K[~is_dead_K].mean()
    undamped_K = diagonal_K.clone()
    diagonal_K += DAMPING * diagonal_K.mean()
    order_K = torch.argsort(diagonal_K, descending=True, stable=True)
    ordered_KK = hessian_KK[order_K][:, order_K]
    return Inputs(group, undamped_K, order_K, ordered_KK, inverse_factor(ordered_KK))


def round_outputs(weight_NK: Tensor, inputs: Inputs, *, bits: int, symmetric: bool) -> Grid:
    """Round some outputs of a layer, shape (N, K); no output minds the others. See `round_layer`."""
    order_K, group = inputs.order_K, inputs.group
    scales_NG, zeros_NG = _fit_scales(
        weight_NK.reshape(len(weight_NK), -1, group), inputs.diagonal_K.reshape(-1, group), bits, symmetric
    )
    weight_KN = weight_NK.T[order_K]
    columns = _Columns(
        scales_NG.T.contiguous(), zeros_NG.T.contiguous(), (order_K // group).tolist(), 2**bits - 1
    )
    codes_KN = _feed_forward(weight_KN.clone(), inputs.factor_KK, columns)
    for _ in range(_SWEEPS[bits]):
        _sweep(codes_KN, weight_KN, inputs.hessian_KK, columns)
    codes_NK = codes_KN[torch.argsort(order_K)].T.contiguous()
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
    group = inputs_of_group(weight_NK, group_size)
    check_finite(weight_NK)
    weight_NGg = weight_NK.reshape(weight_NK.shape[0], -1, group)
    scales_NG, zeros_NG = _fit_scales(weight_NGg, torch.ones(weight_NGg.shape[1:]), bits, symmetric)
    codes_NGg = (weight_NGg / scales_NG[..., None] + zeros_NG[..., None]).round_().clamp_(0, 2**bits - 1)
    return _grid(codes_NGg.reshape(weight_NK.shape), scales_NG, None if symmetric else zeros_NG, bits)


def inputs_of_group(weight_NK: Tensor, group_size: int) -> int:
    """Inputs that share a scale in a layer of shape (N, K), where -1 stands for all.

    Raises:
        CompressionError: they do not divide the layer's inputs.
    """
    inputs = weight_NK.shape[1]
    group = inputs if group_size == -1 else group_size
    if inputs % group:
        raise CompressionError(f"group_size is {group_size}; it must divide the {inputs} inputs of the layer")
    return group


def check_finite(*tensors: Tensor) -> None:
    """Refuse what no rounding can be computed from.

    Raises:
        CompressionError: a number is NaN or infinite.
    """
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


def inverse_factor(hessian_KK: Tensor) -> Tensor:
    """The upper Cholesky factor of a damped Hessian's inverse, float32.

    Raises:
        CompressionError: it cannot be inverted.
    """
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian_KK))
        factor_KK: Tensor = torch.linalg.cholesky(inverse, upper=True)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise CompressionError(
            "the calibration text does not tell the inputs of a layer apart; use more of it (calibration_samples), or "
            "another calibration"
        ) from error
    return factor_KK


@dataclass(frozen=True)
class _Columns:
    """How each column of a layer is stored; a column is a row in what follows, (K, N), so that its values lie side by side.

    Attributes:
        scales_GN, zeros_GN: of the groups.
        groups: of each column.
        top: the largest code.
    """

    scales_GN: Tensor
    zeros_GN: Tensor
    groups: list[int]
    top: int

    def round(self, column: int, weight_N: Tensor, codes_N: Tensor) -> Tensor:
        """Write the nearest codes into `codes_N`; their weights."""
        scale_N, zero_N = self.scales_GN[self.groups[column]], self.zeros_GN[self.groups[column]]
        torch.div(weight_N, scale_N, out=codes_N).add_(zero_N).round_().clamp_(0, self.top)
        return (codes_N - zero_N).mul_(scale_N)

    def weights(self, codes_KN: Tensor) -> Tensor:
        """What the codes stand for."""
        return (codes_KN - self.zeros_GN[self.groups]).mul_(self.scales_GN[self.groups])


def _feed_forward(weight_KN: Tensor, factor_KK: Tensor, columns: _Columns) -> Tensor:
    """Codes of every column, shape (K, N). `weight_KN` is used up."""
    codes_KN = torch.empty_like(weight_KN)
    for first, last in _column_blocks(weight_KN):
        errors = torch.empty_like(weight_KN[first:last])
        for column in range(first, last):
            rounded_N = columns.round(column, weight_KN[column], codes_KN[column])
            error_N = torch.sub(weight_KN[column], rounded_N, out=errors[column - first])
            error_N.div_(factor_KK[column, column])
            weight_KN[column:last].addr_(factor_KK[column, column:last], error_N, alpha=-1)
        weight_KN[last:].addmm_(factor_KK[first:last, last:].T, errors, alpha=-1)
    return codes_KN


def _sweep(codes_KN: Tensor, weight_KN: Tensor, hessian_KK: Tensor, columns: _Columns) -> None:
    """Change `codes_KN`, column by column, to what loses least beside the codes of all other columns."""
    rounded_KN = columns.weights(codes_KN)
    slope_KN = hessian_KK @ (rounded_KN - weight_KN)  # of half the loss
    for first, last in _column_blocks(weight_KN):
        changes = torch.empty_like(weight_KN[first:last])
        for column in range(first, last):
            wanted_N = torch.sub(rounded_KN[column], slope_KN[column] / hessian_KK[column, column])
            change_N = columns.round(column, wanted_N, codes_KN[column]).sub_(rounded_KN[column])
            changes[column - first] = change_N
            slope_KN[column:last].addr_(hessian_KK[column, column:last], change_N)
        slope_KN[last:].addmm_(hessian_KK[last:, first:last], changes)


def _column_blocks(weight_KN: Tensor) -> Iterator[tuple[int, int]]:
    """First column and end of each block; what a block does to the columns after it is one product of matrices."""
    for first in range(0, len(weight_KN), _BLOCK_COLUMNS):
        yield first, min(first + _BLOCK_COLUMNS, len(weight_KN))
