"""Errors fed to other outputs: the loss that couples outputs falls, and without a coupling nothing changes."""

import numpy as np
import pytest
import torch
from tiny_llama import TEXTS, tiny_llama

from configs.weights import WeightSettings
from tasks.compression import output_feedback
from tasks.compression.block_inputs import linear_layers
from tasks.compression.error import CompressionError
from tasks.compression.fisher import curvature
from tasks.compression.gptq import round_layer
from tasks.compression.grid import Grid, load_grids
from tasks.compression.grids import _predicted_divergence, write_grids_of, write_importance
from tasks.compression.mixed_precision import layer_errors
from tasks.compression.output_feedback import damped_slopes, round_with_output_feedback
from tasks.compression.output_parts import output_parts
from tasks.training.checkpoint import load_model

OPTIONS = {"bits": 4, "symmetric": False, "group_size": 16}


def _correlated(size: int, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    seen = torch.randn(400, 8, generator=random) @ torch.randn(8, size, generator=random)
    seen += 0.3 * torch.randn(400, size, generator=random)
    return seen.T @ seen / 400


@pytest.fixture
def layer() -> tuple[torch.Tensor, torch.Tensor]:
    """A weight of 80 outputs and 64 inputs, and the Hessian of correlated inputs."""
    return torch.randn(80, 64, generator=torch.Generator().manual_seed(0)), _correlated(64, 1)


def _loss(grid: Grid, weight_NK: torch.Tensor, hessian_KK: torch.Tensor, slope_NN: torch.Tensor) -> float:
    change = torch.from_numpy(grid.weights()) - weight_NK
    return float(((slope_NN @ change @ hessian_KK) * change).sum())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [1, 24, 192])
def test_the_loss_that_couples_outputs_falls(layer, symmetric, block, monkeypatch):
    monkeypatch.setattr(output_feedback, "_BLOCK_OUTPUTS", block)
    weight_NK, hessian_KK = layer
    (slope_NN,) = damped_slopes([_correlated(80, 2)])
    options = OPTIONS | {"symmetric": symmetric}
    fed = round_with_output_feedback(weight_NK, hessian_KK, [slope_NN], **options)
    alone = round_layer(weight_NK, hessian_KK, **options)
    losses = [_loss(grid, weight_NK, hessian_KK, slope_NN) for grid in (fed, alone)]
    if block == 192:  # a single block has no output to feed
        np.testing.assert_array_equal(fed.weights(), alone.weights())
    else:
        assert losses[0] < 0.85 * losses[1]


def test_the_predicted_divergence_couples_the_outputs_of_each_part(layer):
    weight_NK, hessian_KK = layer
    slope_NN = _correlated(80, 2)
    parts = damped_slopes([slope_NN[:50, :50], slope_NN[50:, 50:]])
    grid = round_with_output_feedback(weight_NK, hessian_KK, parts, **OPTIONS)
    change = torch.from_numpy(grid.weights()) - weight_NK
    expected = 0.5 * torch.einsum("no,nk,kl,ol->", torch.block_diag(*parts), change, hessian_KK, change)
    assert _predicted_divergence(change, hessian_KK, parts) == pytest.approx(float(expected), rel=1e-4)
    alone = 0.5 * torch.einsum("nk,kl,nl->", change, hessian_KK, change)
    assert _predicted_divergence(change, hessian_KK, []) == pytest.approx(float(alone), rel=1e-4)


def test_outputs_that_are_not_felt_together_are_rounded_by_gptq(layer, monkeypatch):
    monkeypatch.setattr(output_feedback, "_BLOCK_OUTPUTS", 16)  # the second part ends before the first
    weight_NK, hessian_KK = layer
    felt = torch.diag(torch.linspace(0.5, 2, 80))
    fed = round_with_output_feedback(weight_NK, hessian_KK, [felt[:50, :50], felt[50:, 50:]], **OPTIONS)
    alone = round_layer(weight_NK, hessian_KK, **OPTIONS)
    np.testing.assert_array_equal(fed.codes, alone.codes)
    np.testing.assert_array_equal(fed.scales, alone.scales)
    np.testing.assert_array_equal(fed.zeros, alone.zeros)


def test_damping_keeps_the_mean_and_makes_up_for_outputs_that_nothing_feels():
    damped = damped_slopes([torch.diag(torch.tensor([0.0, 2.0])), torch.diag(torch.tensor([4.0]))])
    assert float(torch.cat([part.diagonal() for part in damped]).mean()) == pytest.approx(1)
    assert all((part.diagonal() > 0).all() for part in damped)
    (nothing,) = damped_slopes([torch.zeros(3, 3)])
    assert torch.linalg.matrix_rank(nothing) == 3


def test_nan_and_groups_that_do_not_fit_are_refused(layer):
    weight_NK, hessian_KK = layer
    with pytest.raises(CompressionError, match="divide the 64 inputs"):
        round_with_output_feedback(weight_NK, hessian_KK, [torch.eye(80)], **OPTIONS | {"group_size": 48})
    with pytest.raises(CompressionError, match="NaN"):
        round_with_output_feedback(weight_NK, hessian_KK, [torch.eye(80) * torch.nan], **OPTIONS)


@pytest.mark.parametrize("outputs", [1, 576, 640, 641, 1536, 8192])
def test_parts_of_outputs_are_as_few_as_fit(outputs):
    sizes = output_parts(outputs)
    assert sum(sizes) == outputs
    assert max(sizes) <= 640
    assert len(sizes) == -(-outputs // 640)


def test_pairs_of_outputs_have_the_squares_on_their_diagonal(tmp_path):
    model = load_model(tiny_llama(tmp_path / "model").folder, torch.float32)
    tokens_BT = torch.randint(5, 200, (3, 64), generator=torch.Generator().manual_seed(0))
    found = curvature(model, tokens_BT, seed=0, of_outputs=True)
    plain = curvature(model, tokens_BT, seed=0)
    assert not plain.outputs
    assert found.outputs.keys() == linear_layers(model).keys()
    for name, (pairs_NN,) in found.outputs.items():
        torch.testing.assert_close(found.tokens[name], plain.tokens[name])
        torch.testing.assert_close(pairs_NN.diagonal().mean(), found.tokens[name].mean())
        assert float((pairs_NN - torch.diag(pairs_NN.diagonal())).abs().max()) > 0


def test_a_checkpoint_is_rounded_with_what_its_loss_feels(tmp_path, monkeypatch):
    """Not as without; layers at 8 bits are left to GPTQ."""
    monkeypatch.setattr(output_feedback, "_BLOCK_OUTPUTS", 16)  # the layers are narrow
    checkpoint = tiny_llama(tmp_path / "model", layers=2)
    named = "model.layers.0.mlp.down_proj"
    weights = WeightSettings(bits=4, group_size=32, calibration="gptq", int8_layers=(named,))
    fed = weights.model_copy(update={"output_feedback": True})
    importance, *folders = (tmp_path / name for name in ("importance", "fed", "alone"))
    for folder in (importance, *folders):
        folder.mkdir()
    write_importance(checkpoint, TEXTS, importance, of_outputs=True)
    for each, folder in zip((fed, weights), folders, strict=True):
        write_grids_of(checkpoint, importance, each, folder)
    grids = [load_grids(folder) for folder in folders]
    assert grids[0][named].bits == grids[1][named].bits == 8
    first = "model.layers.0.self_attn.q_proj"
    assert not np.array_equal(grids[0][first].codes, grids[1][first].codes)
    assert layer_errors(folders[0]).keys() == grids[0].keys()
    assert all(np.isfinite(list(layer_errors(folders[0]).values())))
