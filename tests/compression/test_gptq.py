"""GPTQ loses less than rounding to nearest on the inputs it was given, and what is stored is what was computed."""

import numpy as np
import pytest
import torch

from tasks.compression import gptq
from tasks.compression.error import CompressionError
from tasks.compression.gptq import round_layer, round_to_nearest
from tasks.compression.grid import Grid, load_grids, save_grids
from tasks.compression.mixed_precision import layers_within_bytes, layers_within_divergence


@pytest.fixture
def layer() -> tuple[torch.Tensor, torch.Tensor]:
    """A weight of 48 outputs and 64 inputs, and the Hessian of strongly correlated inputs."""
    random = torch.Generator().manual_seed(0)
    weight_NK = torch.randn(48, 64, generator=random)
    inputs_TK = torch.randn(400, 8, generator=random) @ torch.randn(8, 64, generator=random)
    inputs_TK += 0.1 * torch.randn(400, 64, generator=random)
    return weight_NK, inputs_TK.T @ inputs_TK / 400


def _loss(grid: Grid, weight_NK: torch.Tensor, hessian_KK: torch.Tensor) -> float:
    change = torch.from_numpy(grid.weights()) - weight_NK
    return float(((change @ hessian_KK) * change).sum())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [16, -1])
def test_output_error_is_far_below_that_of_rounding_to_nearest(layer, symmetric, group_size):
    weight_NK, hessian_KK = layer
    options = {"bits": 4, "symmetric": symmetric, "group_size": group_size}
    fed_forward = round_layer(weight_NK, hessian_KK, **options)
    nearest = round_layer(weight_NK, torch.eye(64), **options)  # uncorrelated inputs: nothing to feed forward
    assert _loss(fed_forward, weight_NK, hessian_KK) < 0.5 * _loss(nearest, weight_NK, hessian_KK)
    assert fed_forward.group_size == (64 if group_size == -1 else 16)
    assert (fed_forward.zeros is None) == symmetric


@pytest.mark.parametrize("symmetric", [True, False])
def test_looking_at_every_column_again_loses_less(layer, symmetric, monkeypatch):
    weight_NK, hessian_KK = layer
    damped_KK = hessian_KK + gptq.DAMPING * hessian_KK.diagonal().mean() * torch.eye(64)
    losses = []
    for sweeps in range(5):
        monkeypatch.setattr(gptq, "_SWEEPS", {4: sweeps})
        grid = round_layer(weight_NK, hessian_KK, bits=4, symmetric=symmetric, group_size=16)
        losses.append(_loss(grid, weight_NK, damped_KK))
    assert losses == sorted(losses, reverse=True)
    assert losses[2] < 0.95 * losses[0]


def test_uncorrelated_inputs_are_rounded_to_nearest(layer):
    weight_NK, _ = layer
    grid = round_layer(weight_NK, torch.eye(64), bits=8, symmetric=False, group_size=16)
    steps = np.repeat(grid.scales.astype(np.float32), 16, axis=1)
    inside = (grid.codes > 0) & (grid.codes < 255)
    error = np.abs(grid.weights() - weight_NK.numpy())
    assert (error[inside] <= 0.5001 * steps[inside]).all()


def test_an_input_that_is_always_zero_does_no_harm(layer):
    weight_NK, hessian_KK = layer
    small_KK = 1e-6 * hessian_KK  # as weighted by importance
    small_KK[5], small_KK[:, 5] = 0, 0
    options = {"bits": 4, "symmetric": False, "group_size": 16}
    beside = _loss(round_layer(weight_NK, small_KK, **options), weight_NK, small_KK)
    alone = _loss(round_layer(weight_NK, 1e-6 * hessian_KK, **options), weight_NK, 1e-6 * hessian_KK)
    assert beside < 1.3 * alone
    hessian_KK[5], hessian_KK[:, 5] = 0, 0
    assert np.isfinite(
        round_layer(weight_NK, hessian_KK, bits=4, symmetric=True, group_size=16).weights()
    ).all()


def test_nan_and_groups_that_do_not_fit_are_refused(layer):
    weight_NK, hessian_KK = layer
    with pytest.raises(CompressionError, match="divide the 64 inputs"):
        round_layer(weight_NK, hessian_KK, bits=4, symmetric=True, group_size=48)
    hessian_KK[0, 0] = torch.nan
    with pytest.raises(CompressionError, match="NaN"):
        round_layer(weight_NK, hessian_KK, bits=4, symmetric=True, group_size=16)


def test_grids_come_back_from_disk_as_they_were(layer, tmp_path):
    weight_NK, hessian_KK = layer
    grids = {
        "model.layers.0.mlp.up_proj": round_layer(
            weight_NK, hessian_KK, bits=4, symmetric=False, group_size=16
        ),
        "model.layers.0.mlp.down_proj": round_layer(
            weight_NK, hessian_KK, bits=8, symmetric=True, group_size=-1
        ),
    }
    save_grids(grids, tmp_path)
    found = load_grids(tmp_path)
    assert found.keys() == grids.keys()
    for name, grid in grids.items():
        assert found[name].bits == grid.bits
        np.testing.assert_array_equal(found[name].weights(), grid.weights())
    with pytest.raises(CompressionError, match="build the grids first"):
        load_grids(tmp_path / "nowhere")


def test_budgets_take_the_layers_that_lose_most_for_their_bytes():
    codes, scales = np.zeros((8, 64), np.uint8), np.ones((8, 2), np.float16)
    wide = Grid(4, np.zeros((32, 64), np.uint8), np.ones((32, 2), np.float16), None)
    grids = {"a": Grid(4, codes, scales, None), "b": Grid(4, codes, scales, None), "wide": wide}
    errors = {"a": 0.01, "b": 0.03, "wide": 0.04}  # wide loses most, but costs four times the bytes
    least = sum(grid.stored_bytes for grid in grids.values())
    extra = 8 * 64 + 2 * 8 - grids["a"].stored_bytes
    assert layers_within_bytes(errors, grids, least + extra) == ("b",)
    assert layers_within_bytes(errors, grids, least + 2 * extra) == ("a", "b")
    assert layers_within_bytes(errors, grids, least - 1) == ()
    assert layers_within_divergence(errors, grids, 0.05) == ("b",)
    assert layers_within_divergence(errors, grids, 0.08) == ()
    assert layers_within_divergence(errors, grids, 0.0) == ("a", "b", "wide")


@pytest.mark.parametrize("symmetric", [True, False])
def test_rounding_to_nearest_is_gptq_on_inputs_that_tell_nothing_of_each_other(symmetric):
    weight_NK = torch.randn(24, 64, generator=torch.Generator().manual_seed(3))
    plain = round_to_nearest(weight_NK, bits=4, symmetric=symmetric, group_size=32)
    fed = round_layer(weight_NK, torch.eye(64), bits=4, symmetric=symmetric, group_size=32)
    assert np.array_equal(plain.codes, fed.codes)
    assert np.array_equal(plain.scales, fed.scales)
    step = np.abs(plain.scales.astype(np.float32)).mean()
    assert np.abs(plain.weights() - weight_NK.numpy()).mean() < step / 2
