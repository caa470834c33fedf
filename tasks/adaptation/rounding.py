"""What NNCF's integer weight rounding makes of a weight, differentiably.

The formulas are those of NNCF 3.4 (`weight_lowering.py`, Apache-2.0), for weights of shape (O outputs, I
inputs) in groups of G inputs. Symmetric: the scale is signed, so that the value of largest magnitude falls
on level -2^(b-1), which has no positive twin.
Asymmetric: min and max, widened to hold zero, span 2^b levels. Integers are found with the float32 scale;
    the IR
stores the scale, and multiplies, in float16.
"""

from typing import Any

import torch
from torch import Tensor

from configs.weights import WeightSettings
from tasks.training.error import TrainingError

_SMALLEST_SCALE = torch.finfo(torch.float32).eps


def rounded(weight_OI: Tensor, bits: int, symmetric: bool, group_size: int) -> Tensor:
    """The float32 weight that an engine computes with after NNCF has rounded `weight_OI`, same shape.

    Args:
        weight_OI: any float dtype.
        bits: 4 or 8.
        symmetric: no zero point.
        group_size: G, dividing I; -1 for one scale an output.
    """
    group = weight_OI.shape[1] if group_size == -1 else group_size
    weight = weight_OI.detach().float().reshape(weight_OI.shape[0], -1, group)
    low, high = weight.aminmax(dim=-1, keepdim=True)
    if symmetric:
        scale = _at_least_epsilon(torch.where(-low >= high, low.abs(), -high) / 2 ** (bits - 1))
        integers = (weight / scale).round_().clamp_(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    else:
        low, high = low.clamp(max=0), high.clamp(min=0)
        scale = _at_least_epsilon((high - low) / (2**bits - 1))
        zero_point = (-torch.round(low / scale)).clamp_(0, 2**bits - 1)
        integers = (weight / scale).add_(zero_point).round_().clamp_(0, 2**bits - 1).sub_(zero_point)
    # In place: at 100 million weights a step, fresh memory costs more than the arithmetic.
    return integers.mul_(scale.half().float()).reshape(weight_OI.shape)


def straight_through(weight_OI: Tensor, bits: int, symmetric: bool, group_size: int) -> Tensor:
    """`rounded`, with the gradient of the identity (Bengio, Leonard and Courville 2013, arXiv:1308.3432)."""
    result: Tensor = _StraightThrough.apply(weight_OI, bits, symmetric, group_size)
    return result


def check_roundable(settings: WeightSettings, inputs: int, layer: str) -> None:
    """Raise TrainingError where there is nothing to round, or the groups do not fill the layer."""
    if settings.bits not in (4, 8):
        raise TrainingError(f"weights.bits is {settings.bits}; recovery needs rounded weights (4 or 8)")
    if settings.group_size != -1 and inputs % settings.group_size:
        raise TrainingError(
            f"weights.group_size is {settings.group_size}, {layer} has {inputs} inputs; it must divide them"
        )


def _at_least_epsilon(scale: Tensor) -> Tensor:
    return torch.where(scale.abs() < _SMALLEST_SCALE, _SMALLEST_SCALE, scale)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_OI: Tensor, bits: int, symmetric: bool, group_size: int) -> Tensor:
        return rounded(weight_OI, bits, symmetric, group_size).to(weight_OI.dtype)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        return slope, None, None, None
