"""A source that was rounded before keeps its own integers: found exactly, refused where there are none, served by both engines."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from served_logits import logits_of, sealed
from tiny_llama import tiny_llama

from configs.space import WeightCandidate
from configs.weights import WeightSettings
from tasks.compression.build import build_artifact, resolve_weights
from tasks.compression.error import CompressionError
from tasks.compression.openvino_matrices import MODEL_XML, weight_formats
from tasks.compression.source_grid import find_grid
from tasks.store.artifact import Artifact
from tasks.store.store import Store

GROUP = 32
KEPT = WeightSettings(bits=4, symmetric=False, group_size=GROUP, calibration="source_grid")
OFF_GRID = "model.layers.1.mlp.down_proj"


def dequantized(outputs: int, inputs: int, seed: int, levels: int = 16) -> torch.Tensor:
    """Weights d * q + m of groups of 32, with d and m in float16, as a GGUF's Q4_1 is read."""
    random = torch.Generator().manual_seed(seed)
    shape = (outputs, inputs // GROUP, 1)
    step = (0.005 + 0.02 * torch.rand(shape, generator=random)).half().float()
    least = (-8 * step + 0.02 * torch.randn(shape, generator=random)).half().float()
    codes = torch.randint(0, levels, (outputs, inputs // GROUP, GROUP), generator=random)
    return (step * codes + least).reshape(outputs, inputs)


def farthest(weight_NK: torch.Tensor, group_size: int = GROUP) -> float:
    """Of a step, between a weight and the one that is kept."""
    grid = find_grid(weight_NK, group_size)
    assert grid is not None
    off = np.abs(grid.weights() - weight_NK.numpy()).reshape(*grid.scales.shape, -1)
    return float((off / grid.scales.astype(np.float32)[..., None]).max())


@pytest.mark.parametrize("levels", [16, 11, 3, 2])
def test_weights_are_kept_to_half_a_percent_of_a_step(levels):
    weight_NK = dequantized(24, 128, levels, levels)
    assert farthest(weight_NK) < 0.01
    assert farthest(weight_NK, 16) < 0.01  # half a group lies on its grid, too


def test_a_checkpoint_in_bfloat16_lies_on_its_grid_nearly():
    weight_NK = dequantized(24, 128, 0).bfloat16().float()
    assert 0.005 < farthest(weight_NK) < 0.1


def test_groups_of_one_value_or_none_are_kept():
    weight_NK = dequantized(4, 128, 0)
    weight_NK[0, :32], weight_NK[1, 32:64], weight_NK[2, 64:96] = 0.0, 0.03, -0.07
    grid = find_grid(weight_NK, GROUP)
    assert grid is not None
    np.testing.assert_allclose(grid.weights(), weight_NK.numpy(), atol=2e-4)
    assert (grid.weights()[0, :32] == 0).all()


def test_other_weights_are_on_no_grid():
    random = torch.randn(4, 128, generator=torch.Generator().manual_seed(0))
    assert find_grid(random, GROUP) is None
    one_group = dequantized(4, 128, 0)
    one_group[3, 96:] = random[3, 96:]
    assert find_grid(one_group, GROUP) is None
    assert find_grid(dequantized(4, 128, 0), 64) is None  # two of its groups
    assert find_grid(dequantized(4, 128, 0, levels=24), GROUP) is None  # more than 4 bits
    with pytest.raises(CompressionError, match="must divide the 128 inputs"):
        find_grid(random, 48)
    with pytest.raises(CompressionError, match="NaN or infinite"):
        find_grid(random.clone().fill_(torch.nan), GROUP)


@pytest.fixture(scope="module")
def checkpoint(home: Store, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Every linear layer on a grid but one."""
    model = tiny_llama(tmp_path_factory.mktemp("tiny") / "model")
    path = model.folder / "model.safetensors"
    weights = load_file(path)
    for seed, (name, tensor) in enumerate(sorted(weights.items())):
        if "_proj" in name and OFF_GRID not in name:
            weights[name] = 8 * dequantized(*tensor.shape, seed)
    save_file(weights, path, metadata={"format": "pt"})
    return sealed(home, model)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_served_it_says_what_the_source_says(home, checkpoint, engine):
    exact = KEPT.model_copy(update={"embedding_bits": 32})
    nearest = exact.model_copy(update={"calibration": "none"})
    source = logits_of(build_artifact(home, checkpoint, "openvino", WeightSettings(), ()), "openvino")
    lost = {}
    for weights in (exact, nearest):
        resolved = resolve_weights(home, checkpoint, engine, weights, ())
        artifact = build_artifact(home, checkpoint, engine, resolved, ())
        lost[weights.calibration] = np.abs(logits_of(artifact, engine) - source).mean()
    assert lost["source_grid"] < 0.2 * lost["none"]


def test_layers_on_no_grid_are_named_and_get_8_bits(home, checkpoint):
    resolved = resolve_weights(home, checkpoint, "openvino", KEPT, ())
    assert resolved.int8_layers == (OFF_GRID,)
    assert resolved.label == "int4 asym g32 source_grid 1 layers int8"
    artifact = build_artifact(home, checkpoint, "openvino", resolved, ())
    layers = weight_formats(artifact.folder).layers
    assert [name for name, stored in layers.items() if stored == "u8"] == [OFF_GRID]
    assert list(layers.values()).count("u4") == 20
    with pytest.raises(CompressionError, match=rf"layer {OFF_GRID} lies on no 4-bit grid in groups of 32"):
        build_artifact(home, checkpoint, "openvino", KEPT, ())


def test_zero_points_between_the_codes_take_16_bits(home, checkpoint):
    resolved = resolve_weights(home, checkpoint, "openvino", KEPT, ())
    named = resolved.int8_layers
    stored = {
        calibration: (
            build_artifact(
                home,
                checkpoint,
                "openvino",
                KEPT.model_copy(update={"calibration": calibration, "int8_layers": named}),
                (),
            ).folder
            / MODEL_XML
        )
        .with_suffix(".bin")
        .stat()
        .st_size
        for calibration in ("source_grid", "none")
    }
    groups = sum(
        tensor.numel() // GROUP
        for name, tensor in load_file(checkpoint.folder / "model.safetensors").items()
        if "_proj" in name and OFF_GRID not in name
    )
    more = groups * 12 // 8  # 16 bits instead of 4
    assert stored["source_grid"] - stored["none"] == pytest.approx(more, rel=0.02)


def test_a_source_that_was_never_rounded_is_refused(home, tmp_path):
    model = tiny_llama(tmp_path / "model")
    checkpoint = sealed(home, model)
    with pytest.raises(CompressionError, match="none of the source's 21 linear layers lies on a 4-bit grid"):
        resolve_weights(home, checkpoint, "openvino", KEPT, ())


def test_trained_weights_leave_the_grid():
    assert KEPT.for_trained_weights == KEPT.model_copy(update={"calibration": "gptq"})
    int8 = WeightSettings(bits=8)
    assert int8.for_trained_weights == int8


@pytest.mark.parametrize(
    "change",
    [{"symmetric": True}, {"group_size": -1}, {"bits": 8}, {"int8_ratio": 0.2}, {"number": "nf4"}],
)
def test_other_formats_have_no_source_grid(change):
    with pytest.raises(ValueError, match=r"source_grid|nf4"):
        WeightSettings.model_validate(KEPT.model_dump() | change)


def test_activations_are_not_rounded_beside_real_zero_points():
    named = {"weights": KEPT.model_dump(), "activation_group": 32}
    with pytest.raises(ValueError, match="activation_group is 32 with int4 asym g32 source_grid"):
        WeightCandidate.model_validate({"engine": "openvino"} | named)
    assert WeightCandidate.model_validate({"engine": "openvino"} | named | {"activation_group": 0})
