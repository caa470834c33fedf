"""The trainable grid: it starts at the grid, ends as one, and its gradients are those of the straight-through definition."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from tasks.adaptation.grid_layer import GridLinear
from tasks.compression.gptq import round_layer
from tasks.compression.grid import Grid

N, K, TOKENS = 24, 64, 10


def made(bits: int, symmetric: bool, group: int, seed: int = 0) -> tuple[GridLinear, Grid, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(N, K, generator=generator) * 0.1
    inputs = torch.randn(200, K, generator=generator)
    grid = round_layer(weight, inputs.T @ inputs, bits=bits, symmetric=symmetric, group_size=group)
    torch.manual_seed(seed)
    return GridLinear(grid, weight, None, rank=4), grid, torch.randn(TOKENS, K, generator=generator)


@pytest.mark.parametrize(("bits", "group"), [(4, 16), (4, -1), (8, -1)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_it_starts_at_the_grid_and_gives_it_back(bits: int, group: int, symmetric: bool) -> None:
    layer, grid, x = made(bits, symmetric, group)
    torch.testing.assert_close(
        layer(x), functional.linear(x, torch.from_numpy(grid.weights())), atol=1e-5, rtol=1e-5
    )
    back = layer.grid()
    np.testing.assert_array_equal(back.codes, grid.codes)
    np.testing.assert_array_equal(back.scales, grid.scales)
    assert (back.zeros is None) == symmetric
    assert back.bits == bits


@pytest.mark.parametrize("symmetric", [True, False])
def test_changed_it_computes_with_the_grid_that_it_gives(symmetric: bool) -> None:
    layer, grid, x = made(4, symmetric, 16)
    layer.t_NG.data.normal_(0, 0.05)
    layer.b_NR.data.normal_(0, 0.05)
    changed = layer.grid()
    assert 0.05 < (changed.codes != grid.codes).mean() < 0.95
    assert changed.codes.max() <= 15
    torch.testing.assert_close(
        layer(x), functional.linear(x, torch.from_numpy(changed.weights())), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("bits", [4, 8])
def test_gradients_are_those_of_rounding_as_the_identity(bits: int) -> None:
    layer, grid, x = made(bits, False, -1 if bits == 8 else 16)
    layer.t_NG.data.normal_(0, 0.01)
    layer.b_NR.data.normal_(0, 0.01)
    x.requires_grad_()
    slope = torch.randn(TOKENS, N)
    found = torch.autograd.grad(layer(x), (x, layer.t_NG, layer.a_RK, layer.b_NR), slope)

    shape = (*grid.scales.shape, -1)
    product = layer.levels * layer.b_NR @ layer.a_RK
    codes = layer.centred_codes() + product - product.detach()
    weight = (codes.view(shape) * (layer.scales_NG * (1 + layer.t_NG))[..., None]).view(N, K)
    expected = torch.autograd.grad(
        functional.linear(x, weight), (x, layer.t_NG, layer.a_RK, layer.b_NR), slope
    )
    for ours, theirs in zip(found, expected, strict=True):
        # What is left: scales rounded to float16, and the code's slope by the scale that training began with.
        torch.testing.assert_close(ours, theirs, atol=0.05 * theirs.abs().max().item(), rtol=0)
