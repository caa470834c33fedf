"""Formats of the ONNX path beyond rounding to nearest: named 8-bit layers, HQQ, k-quant, int8 activations."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tiny_llama import TEXTS

from configs.engine import EngineSettings
from configs.weights import WeightSettings
from tasks.compression.error import CompressionError
from tasks.compression.onnx import build_onnx
from tasks.compression.onnx_activations import quantize_activations
from tasks.compression.onnx_matrix import (
    RoundedMatrix,
    hqq_matrix,
    k_quant_matrix,
    round_matrix,
    unpacked_nibbles,
)
from tasks.compression.onnx_rounding import round_graph
from tasks.engines.onnxruntime_engine import OnnxRuntimeEngine
from tasks.engines.protocol import GenerationRequest, ScoreRequest
from tasks.store.artifact import Artifact, Manifest

LAYERS = 2
IDS = tuple(range(20, 60))


def scores(folder: Path) -> np.ndarray:
    """Log-probabilities of a fixed text; the folder lacks nothing but what the f32 graph's has."""
    artifact = Artifact(digest="1" * 64, folder=folder, manifest=Manifest(kind="onnxruntime", files=()))
    with OnnxRuntimeEngine.open(artifact, EngineSettings(engine="onnxruntime")) as engine:
        (scored,) = engine.score([ScoreRequest(IDS[:1], IDS[1:])])
        (made,) = engine.generate([GenerationRequest(IDS[:5], 6, ignore_eos=True)])
        (again,) = engine.score([ScoreRequest(IDS[:5], made.tokens)])
    assert again.is_argmax.sum() >= 5  # what decoding picks, scoring calls the most probable, but for a tie
    return scored.logprobs


def beside(float_graph: Path, out: Path) -> Path:
    """`out`, with what an engine reads beside the graph."""
    out.mkdir()
    for name in ("genai_config.json", "tokenizer.json"):
        (out / name).write_bytes((float_graph.parent / name).read_bytes())
    return out / "model.onnx"


def dense_NK(matrix: RoundedMatrix) -> np.ndarray:
    zeros = matrix.zero_points
    assert zeros is not None
    if zeros.dtype == np.uint8:
        zeros = unpacked_nibbles(zeros)[:, : matrix.scales.shape[1]].astype(np.float32)
    codes = unpacked_nibbles(matrix.packed).astype(np.float32)
    return ((codes - zeros[..., None]) * matrix.scales[..., None]).reshape(len(codes), -1)


def heavy_tailed() -> np.ndarray:
    """K = 96 inputs, N = 40 outputs; one output constant, one all zero, one of a single sign."""
    weights_KN = np.random.default_rng(0).standard_t(4, size=(96, 40)).astype(np.float32)
    weights_KN[:, 0], weights_KN[:, 1] = 0.3, 0
    weights_KN[:, 2] = np.abs(weights_KN[:, 2]) + 5
    return weights_KN


def test_k_quant_is_nearer_than_rounding_to_nearest() -> None:
    weights_KN = heavy_tailed()
    nearest, searched = (
        dense_NK(round_matrix(weights_KN, 4, 32, symmetric=False)),
        dense_NK(k_quant_matrix(weights_KN, 32)),
    )
    groups = weights_KN.T.reshape(40, 3, 32)
    importance = np.abs(groups) + np.sqrt((groups**2).mean(-1, keepdims=True))
    errors = [(importance * (d.reshape(groups.shape) - groups) ** 2).sum(-1) for d in (nearest, searched)]
    assert (errors[1] <= errors[0] * (1 + 1e-5) + 1e-6).all()  # group by group
    assert errors[1][3:].sum() < 0.98 * errors[0][3:].sum()


def test_hqq_is_nearer_in_the_norm_that_it_minimizes() -> None:
    weights_KN = heavy_tailed()[:, 3:]
    nearest, fitted = (
        dense_NK(round_matrix(weights_KN, 4, 32, symmetric=False)),
        dense_NK(hqq_matrix(weights_KN, 32)),
    )
    errors = [(np.abs(d - weights_KN.T) ** 0.7).sum() for d in (nearest, fitted)]
    assert errors[1] < 0.99 * errors[0]
    assert hqq_matrix(weights_KN, 32).zero_points.dtype == np.float32


@pytest.mark.parametrize("calibration", ["hqq", "k_quant"])
def test_fitted_scales_are_served(float_graph: Path, tmp_path: Path, calibration: str) -> None:
    weights = WeightSettings(bits=4, group_size=32, symmetric=False, calibration=calibration)
    nearest = weights.model_copy(update={"calibration": "none"})
    expected, found = scores(float_graph.parent), []
    for name, format_ in (("nearest", nearest), ("fitted", weights)):
        target = beside(float_graph, tmp_path / name)
        round_graph(float_graph, target, format_)
        found.append(scores(target.parent))
    assert np.abs(found[1] - expected).mean() < 0.25
    assert np.abs(found[1] - found[0]).max() > 1e-3
    kinds = {
        node.inputs[3].dtype
        for node in ir.load(target).graph
        if node.op_type == "MatMulNBits" and node.attributes["bits"].as_int() == 4
    }
    assert kinds == {ir.DataType.FLOAT if calibration == "hqq" else ir.DataType.UINT8}


@pytest.mark.parametrize("calibration", ["none", "hqq", "k_quant"])
def test_named_layers_stay_at_8_bits(float_graph: Path, tmp_path: Path, calibration: str) -> None:
    """k alone of the fused q, k, v: three matrices, joined again."""
    named = ("model.layers.1.self_attn.k_proj", "model.layers.0.mlp.down_proj")
    weights = WeightSettings(
        bits=4, group_size=16, symmetric=False, calibration=calibration, int8_layers=named
    )
    target = beside(float_graph, tmp_path / "mixed")
    round_graph(float_graph, target, weights)
    bits = {
        node.name: node.attributes["bits"].as_int()
        for node in ir.load(target).graph
        if node.op_type == "MatMulNBits"
    }
    attention = "/model/layers.1/attn/qkv_proj/MatMul"
    assert {name for name, value in bits.items() if value == 8} == {
        f"{attention}/k_proj", "/model/layers.0/mlp/down_proj/MatMul", "/lm_head/MatMul"
    }  # fmt: skip
    assert bits[f"{attention}/q_proj"] == bits[f"{attention}/v_proj"] == 4
    assert len(bits) == 5 * LAYERS + 2 + 1
    assert np.abs(scores(target.parent) - scores(float_graph.parent)).mean() < 0.25


def test_unknown_layer_is_refused(float_graph: Path, tmp_path: Path) -> None:
    weights = WeightSettings(bits=4, group_size=16, int8_layers=("model.layers.0.attn.q_proj",))
    with pytest.raises(
        CompressionError, match=r"int8_layers names .*nearest is model.layers.0.self_attn.q_proj"
    ):
        round_graph(float_graph, tmp_path / "model.onnx", weights)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("activations", ["int8_dynamic", "int8_static"])
def test_integer_matrix_products_are_served(
    float_graph: Path, tmp_path: Path, activations: str, symmetric: bool
) -> None:
    weights = WeightSettings(bits=8, activations=activations, symmetric=symmetric)
    target = beside(float_graph, tmp_path / "int8")
    quantize_activations(float_graph, target, weights, TEXTS)
    kinds = [node.op_type for node in ir.load(target).graph]
    assert (
        kinds.count("DynamicQuantizeLinear" if activations == "int8_dynamic" else "QuantizeLinear")
        == 4 * LAYERS
    )
    stored = [
        v.name
        for v in ir.load(target).graph.initializers.values()
        if v.dtype == ir.DataType.FLOAT and len(v.shape) == 2
    ]
    assert all(
        "cache" in name or "lm_head" in name for name in stored
    )  # rotary tables, and scales of the head
    error = np.abs(scores(target.parent) - scores(float_graph.parent))
    assert 1e-4 < error.mean() < 0.1
    assert not (target.parent / ".int8").exists()


def test_static_scales_come_from_the_text(float_graph: Path, tmp_path: Path) -> None:
    found = []
    for name, texts in (("long", TEXTS), ("short", TEXTS[:1])):
        target = beside(float_graph, tmp_path / name)
        quantize_activations(float_graph, target, WeightSettings(bits=8, activations="int8_static"), texts)
        found.append(
            [
                float(n.inputs[1].const_value.numpy())
                for n in ir.load(target).graph
                if n.op_type == "QuantizeLinear"
            ]
        )
    assert all(long >= short for long, short in zip(*found, strict=True))
    assert found[0] != found[1]


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (WeightSettings(bits=4, group_size=32, number="nf4"), "number is nf4"),
        (WeightSettings(bits=4, group_size=32, calibration="hqq"), "symmetric is true with calibration: hqq"),
        (WeightSettings(bits=4, group_size=32, calibration="awq"), "calibration is awq"),
        (WeightSettings(bits=4, group_size=32, int8_ratio=0.5), "int8_ratio is 0.5"),
        (WeightSettings(bits=8, group_size=32, activations="int8_dynamic"), "group_size is 32 with activations"),
        (WeightSettings(bits=8, activations="int8_static"), "there is no calibration text"),
    ],
)  # fmt: skip
def test_impossible_formats_are_refused(
    checkpoint: Artifact, tmp_path: Path, weights: WeightSettings, said: str
) -> None:
    with pytest.raises(CompressionError, match=f"{said}.*use "):
        build_onnx(checkpoint, weights, (), tmp_path)
    assert not list(tmp_path.iterdir())


def test_building_with_activations_is_silent(
    checkpoint: Artifact, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    build_onnx(checkpoint, WeightSettings(bits=8, activations="int8_static"), TEXTS, tmp_path)
    assert capfd.readouterr().out == ""
    assert not [record for record in caplog.records if record.name == "root"]
    assert {"model.onnx", "model.onnx.data", "tokenizer.json"} <= {file.name for file in tmp_path.iterdir()}
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]
