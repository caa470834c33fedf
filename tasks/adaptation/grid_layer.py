"""A linear layer that computes with the grid it is served as, and what of that grid is trained.

A served weight is `scale * (code - zero)`. Zero points stay. Trained are

- the scales, by a relative change of each, `scale_0 * (1 + t)`, rounded to the float16 that is stored (PEQA, Kim et al. 2023,
  arXiv:2305.14152; the second phase of EfficientQAT, Chen et al. 2024, arXiv:2407.11062);
- the codes, by a low-rank change in units of the grid, `round(start + B A)` within the grid's levels. The gradient passes the
  rounding and the limits unchanged (Bengio, Leonard and Courville 2013, arXiv:1308.3432). `start` is the code with the part of a
  level that rounding took from the original weight put back, less than half: training begins at the very codes that are served
  and knows which of them were close calls. Layers at 8 bits, whose levels are fine, move by more of them and can make good
  what the others lost.

What comes out is a grid again: what was trained against is what is stored.

Shapes: N outputs, K inputs, G groups, R rank, T tokens.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.compression.grid import Grid

LEVELS = {4: 4.0, 8: 16.0}
"""Levels that B A = 1 stands for: a learning rate that changes scales by 0.1 % a step moves codes of 4 bits by about 0.004 levels.

Larger steps undo what calibration found before they learn anything (docs/log.md).
"""
_NEAREST = {4: 0.49, 8: 0.375}
"""Of a level: the most of the rounding that is put back; what float16 can tell apart at these sizes, so that `start`
rounds to the code."""


class GridLinear(nn.Module):
    """A grid with a trainable change of its scales and codes."""

    start_NK: Tensor
    scales_NG: Tensor
    low_NG: Tensor

    def __init__(self, grid: Grid, original_NK: Tensor, bias: Any, rank: int) -> None:
        """Start at the grid.

        Args:
            grid: of the layer.
            original_NK: the weight that was rounded.
            bias: parameter of the layer, frozen; None: it has none.
            rank: R.
        """
        super().__init__()
        outputs, inputs = grid.codes.shape
        self._grid, self.bias = grid, bias
        self.levels = LEVELS[grid.bits]
        zeros_NG = np.full(grid.scales.shape, 2 ** (grid.bits - 1)) if grid.zeros is None else grid.zeros
        low_NG = -torch.from_numpy(zeros_NG.astype(np.float32))
        scales_NG = torch.from_numpy(grid.scales.astype(np.float32))
        codes_NGk = torch.from_numpy(grid.codes).float().view(*scales_NG.shape, -1) + low_NG[..., None]
        exact_NGk = original_NK.detach().float().view(codes_NGk.shape) / scales_NG[..., None]
        nearest = _NEAREST[grid.bits]
        start_NGk = codes_NGk + (exact_NGk - codes_NGk).clamp_(-nearest, nearest)
        # Made from the grid, so that training checkpoints need not hold them.
        self.register_buffer("start_NK", start_NGk.view(outputs, inputs).half(), persistent=False)
        self.register_buffer("scales_NG", scales_NG, persistent=False)
        self.register_buffer("low_NG", low_NG, persistent=False)
        self.t_NG = nn.Parameter(torch.zeros_like(scales_NG))
        self.a_RK = nn.Parameter(torch.randn(rank, inputs) / rank**0.5)
        self.b_NR = nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output for x of shape (..., K), with the weight that is served."""
        y: Tensor = _GridProduct.apply(x, self.t_NG, self.a_RK, self.b_NR, self)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    @torch.no_grad()
    def centred_codes(self) -> Tensor:
        """Code less zero point of every weight, float32, shape (N, K)."""
        latent_NK = self.start_NK.float().addmm_(self.b_NR, self.a_RK, alpha=self.levels)
        latent_NGk = latent_NK.view(*self.scales_NG.shape, -1).round_()
        low = self.low_NG[..., None]
        return torch.clamp(latent_NGk, low, low + (2**self._grid.bits - 1), out=latent_NGk).view(
            latent_NK.shape
        )

    @torch.no_grad()
    def scales(self) -> Tensor:
        """The scales as stored, float32, shape (N, G)."""
        return (self.scales_NG * (1 + self.t_NG)).half().float()

    def grid(self) -> Grid:
        """What is served: the grid as it is now."""
        codes_NK = self.centred_codes()
        codes_NGk = codes_NK.view(*self.scales_NG.shape, -1) - self.low_NG[..., None]
        return Grid(
            bits=self._grid.bits,
            codes=codes_NGk.view(codes_NK.shape).to(torch.uint8).cpu().numpy(),
            scales=self.scales().cpu().numpy().astype(np.float16),
            zeros=self._grid.zeros,
        )


class _GridProduct(torch.autograd.Function):
    """x times the served weight; written out, so that no float32 copy of a weight outlives its layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, _t_NG: Tensor, a_RK: Tensor, b_NR: Tensor, layer: GridLinear) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        codes_NK, scales_NG = layer.centred_codes(), layer.scales()
        small_NK = codes_NK.to(torch.bfloat16)  # whole numbers up to 255: exact
        weight_NK = (
            codes_NK.view(*scales_NG.shape, -1).mul_(scales_NG[..., None]).view(codes_NK.shape).to(dtype)
        )
        ctx.save_for_backward(x.to(dtype), small_NK, weight_NK, a_RK, b_NR)
        ctx.layer, ctx.dtype = layer, x.dtype
        return F.linear(x.to(dtype), weight_NK)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, codes_NK, weight_NK, a_RK, b_NR = ctx.saved_tensors
        scales_NG = ctx.layer.scales_NG
        slope_NK = slope.flatten(0, -2).T @ x.flatten(0, -2)
        by_group = slope_NK.view(*scales_NG.shape, -1)
        t_NG = (by_group * codes_NK.view(by_group.shape)).sum(-1, dtype=torch.float32) * scales_NG
        by_code_NK = (by_group * (scales_NG * ctx.layer.levels)[..., None].to(by_group.dtype)).view(
            slope_NK.shape
        )
        a_slope = (b_NR.T.to(by_code_NK.dtype) @ by_code_NK).to(a_RK.dtype)
        b_slope = (by_code_NK @ a_RK.T.to(by_code_NK.dtype)).to(b_NR.dtype)
        return (slope @ weight_NK).to(ctx.dtype), t_NG, a_slope, b_slope, None


class ScaledNorm(nn.Module):
    """A norm whose weight, which stays in float where it is served, changes relatively: `weight * (1 + t)`."""

    def __init__(self, norm: Any) -> None:
        """Start at the norm as it is; it has a weight and no bias."""
        super().__init__()
        self.norm: Any = norm
        self.t_D = nn.Parameter(torch.zeros(norm.weight.shape[0]))

    def forward(self, x: Tensor) -> Tensor:
        """The norm of x, scaled."""
        y: Tensor = self.norm(x)
        return y * (1 + self.t_D).to(y.dtype)

    def merged(self) -> Any:
        """The norm with its new weight."""
        self.norm.weight.data.mul_(1 + self.t_D.detach())
        return self.norm
