"""Finished grids in an ONNX graph: what the kernels compute with is what the grids say."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from configs.engine import EngineSettings
from configs.weights import WeightSettings
from tasks.compression.error import CompressionError
from tasks.compression.grid import Grid
from tasks.compression.onnx import build_onnx
from tasks.compression.onnx_matrix import matrix_of_grid, unpacked_nibbles
from tasks.compression.onnx_rounding import round_graph
from tasks.engines.onnxruntime_engine import OnnxRuntimeEngine
from tasks.engines.protocol import ScoreRequest
from tasks.engines.transformers_engine import TransformersEngine
from tasks.store.artifact import Artifact, Manifest

LAYERS = 2
QKV_ROWS = (64, 32, 32)  # four heads of 16 on two heads of keys and values
FORMATS = {
    "int4-sym": WeightSettings(bits=4, group_size=32, calibration="gptq"),
    "int4-asym-one-group": WeightSettings(bits=4, group_size=64, symmetric=False, calibration="gptq"),
    "int8-sym": WeightSettings(bits=8, group_size=16, calibration="gptq"),
    "int8-asym": WeightSettings(bits=8, group_size=32, symmetric=False, calibration="gptq"),
    "mixed": WeightSettings(
        bits=4,
        group_size=32,
        symmetric=False,
        calibration="gptq",
        embedding_bits=32,
        int8_layers=("model.layers.0.self_attn.v_proj", "model.layers.1.mlp.down_proj"),
    ),
}


def linear_weights(checkpoint: Artifact) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    tensors = load_file(checkpoint.folder / "model.safetensors")
    return {name.removesuffix(".weight"): w for name, w in tensors.items() if name.endswith("_proj.weight")}


def grid_of(weights_NK: np.ndarray, bits: int, group: int, *, symmetric: bool) -> Grid:
    """Rounded down with every third weight one level off: no rounding of ONNX Runtime gives these integers."""
    groups = weights_NK.reshape(len(weights_NK), -1, group)
    low, high = np.minimum(groups.min(-1), 0), np.maximum(groups.max(-1), 0)
    top = 2**bits - 1
    if symmetric:
        scales = (2 * np.maximum(-low, high) / top).astype(np.float16)
        zeros = np.full(scales.shape, 2 ** (bits - 1))
    else:
        scales = ((high - low) / top).astype(np.float16)
        zeros = np.clip(np.round(-low / scales.astype(np.float32)), 0, top)
    codes = np.floor(groups / scales.astype(np.float32)[..., None]) + zeros[..., None]
    codes.reshape(-1)[::3] += 1
    codes_NK = np.clip(codes, 0, top).astype(np.uint8).reshape(weights_NK.shape)
    return Grid(bits, codes_NK, scales, None if symmetric else zeros.astype(np.uint8))


def grids_of(checkpoint: Artifact, weights: WeightSettings) -> dict[str, Grid]:
    """As they are built: the named 8-bit layers have one scale an output."""
    grids = {}
    for name, weights_NK in linear_weights(checkpoint).items():
        named = name in weights.int8_layers
        bits, group = (8, weights_NK.shape[1]) if named else (weights.bits, weights.group_size)
        grids[name] = grid_of(weights_NK, bits, group, symmetric=weights.symmetric)
    return grids


def computed(graph: Path) -> dict[str, np.ndarray]:
    """What each MatMulNBits makes of the identity, by the name of its node: transposed, the weights it computes with."""
    made = {}
    for node in ir.load(graph).graph:
        if node.op_type == "MatMulNBits" and node.name != "/lm_head/MatMul":
            inputs = node.attributes["K"].as_int()
            x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([inputs, inputs]))
            constants = [
                ir.Value(name=v.name, const_value=ir.tensor(v.const_value.numpy(), name=v.name))
                for v in node.inputs[1:]
            ]
            alone = ir.Node("com.microsoft", "MatMulNBits", [x, *constants], list(node.attributes.values()))
            alone.outputs[0].name = "y"
            alone.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            model = ir.Model(
                ir.Graph(
                    [x],
                    alone.outputs,
                    nodes=[alone],
                    initializers=constants,
                    opset_imports={"": 21, "com.microsoft": 1},
                ),
                ir_version=10,
            )
            session = ort.InferenceSession(
                ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
            )
            made[node.name] = session.run(None, {"x": np.eye(inputs, dtype=np.float32)})[0].T
    return made


def by_layer(made: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names of the checkpoint, written out here once more."""
    named = {}
    for node, weights_NK in made.items():
        path = node.strip("/").replace("/MatMul", "").replace("/", ".").replace(".attn.", ".self_attn.")
        if path.endswith("qkv_proj"):
            parts = np.split(weights_NK, np.cumsum(QKV_ROWS)[:-1])
            named |= {path.replace("qkv", kind): part for kind, part in zip("qkv", parts, strict=True)}
        elif "qkv_proj." in path:  # /attn/qkv_proj/MatMul/v_proj, or q_proj for the run of q and k
            first = path.rpartition(".")[2]
            kinds = "qk" if first == "q_proj" else first[0]
            stem = path.partition("qkv_proj")[0]
            cuts = np.cumsum([QKV_ROWS["qkv".index(kind)] for kind in kinds])[:-1]
            named |= {
                f"{stem}{kind}_proj": part
                for kind, part in zip(kinds, np.split(weights_NK, cuts), strict=True)
            }
        else:
            named[path] = weights_NK
    return named


@pytest.mark.parametrize("name", FORMATS)
def test_kernels_compute_with_the_grids(
    checkpoint: Artifact, float_graph: Path, tmp_path: Path, name: str
) -> None:
    grids = grids_of(checkpoint, FORMATS[name])
    assert round_graph(float_graph, tmp_path / "model.onnx", FORMATS[name], grids) == 7 * LAYERS == len(grids)
    served = by_layer(computed(tmp_path / "model.onnx"))
    assert served.keys() == grids.keys()
    for layer, grid in grids.items():
        np.testing.assert_allclose(served[layer], grid.weights(), rtol=1e-5, atol=1e-6)
        assert np.abs(grid.weights() - linear_weights(checkpoint)[layer]).max() > 1e-4


def test_groups_that_no_kernel_takes_are_held_in_blocks() -> None:
    """No kernel takes 48 inputs a group or one group of 576; blocks of 16 and 64 that repeat the scale do."""
    for inputs, group, blocks in ((96, 48, 6), (576, 576, 9)):
        weights_NK = np.random.default_rng(0).normal(size=(5, inputs)).astype(np.float32)
        for bits, symmetric in ((4, False), (8, True)):
            grid = grid_of(weights_NK, bits, group, symmetric=symmetric)
            matrix = matrix_of_grid(grid)
            codes = matrix.packed if bits == 8 else unpacked_nibbles(matrix.packed)
            zeros = 2 ** (bits - 1)
            if matrix.zero_points is not None:
                zeros = unpacked_nibbles(matrix.zero_points)[:, :blocks, None].astype(np.float32)
            assert matrix.scales.shape == (5, blocks)
            dense = (codes.astype(np.float32) - zeros) * matrix.scales[..., None]
            np.testing.assert_array_equal(dense.reshape(5, inputs), grid.weights())


def test_built_graph_is_the_model_of_the_grids(checkpoint: Artifact, tmp_path: Path) -> None:
    """Mixed bits, q and k apart from v; against transformers on the same weights, but for int8 activations."""
    import torch
    from transformers import LlamaForCausalLM

    weights = FORMATS["mixed"]
    grids = grids_of(checkpoint, weights)
    (tmp_path / "onnx").mkdir()
    build_onnx(checkpoint, weights, (), tmp_path / "onnx", grids)
    model = LlamaForCausalLM.from_pretrained(checkpoint.folder)
    with torch.no_grad():
        for name, grid in grids.items():
            model.get_submodule(name).weight.copy_(torch.from_numpy(grid.weights()))
    model.save_pretrained(tmp_path / "torch")
    ids = tuple(range(20, 60))
    requests = [ScoreRequest(ids[:1], ids[1:])]
    reference = Artifact(digest="2" * 64, folder=tmp_path / "torch", manifest=checkpoint.manifest)
    artifact = Artifact(
        digest="1" * 64, folder=tmp_path / "onnx", manifest=Manifest(kind="onnxruntime", files=())
    )
    with TransformersEngine.open(reference, EngineSettings(engine="transformers")) as engine:
        (theirs,) = engine.score(requests)
    with TransformersEngine.open(checkpoint, EngineSettings(engine="transformers")) as engine:
        (unrounded,) = engine.score(requests)
    with OnnxRuntimeEngine.open(artifact, EngineSettings(engine="onnxruntime")) as engine:
        (ours,) = engine.score(requests)
    error = np.abs(ours.logprobs - theirs.logprobs).mean()
    assert error < 0.03
    assert np.abs(ours.logprobs - unrounded.logprobs).mean() > 5 * error


def changed(grids: dict[str, Grid], how: str) -> dict[str, Grid]:
    up, gate, o = (f"model.layers.0.{name}_proj" for name in ("mlp.up", "mlp.gate", "self_attn.o"))
    match how:
        case "missing":
            return {name: grid for name, grid in grids.items() if name != up}
        case "unknown":
            return grids | {"model.layers.0.mlp.upp_proj": grids[up]}
        case "swapped":
            return grids | {up: grids[gate], gate: grids[up]}
        case "shape":
            return grids | {o: grids[up]}
        case "bits":
            return grids | {up: replace(grids[up], bits=8)}
        case "integers":
            return grids | {up: replace(grids[up], codes=grids[up].codes + 8)}
        case "groups":
            w = grids[up].weights()
            return grids | {up: grid_of(w, 4, 8, symmetric=True)}
    raise ValueError(how)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("missing", "1 of 14 linear layers have no grid, model.layers.0.mlp.up_proj first"),
        ("unknown", "names model.layers.0.mlp.upp_proj.*nearest is model.layers.0.mlp.up_proj"),
        ("swapped", "the grid of model.layers.0.mlp.(up|gate)_proj has a cosine of"),
        ("shape", r"self_attn.o_proj is \(128, 64\), the layer \(64, 64\)"),
        ("bits", "up_proj has 8 bits; the format wants 4"),
        ("integers", "4 bits holds the integer 2"),
        ("groups", "groups of 8"),
    ],
)
def test_grids_of_another_model_are_refused(
    checkpoint: Artifact, float_graph: Path, tmp_path: Path, how: str, said: str
) -> None:
    grids = changed(grids_of(checkpoint, FORMATS["int4-sym"]), how)
    with pytest.raises(CompressionError, match=said):
        round_graph(float_graph, tmp_path / "model.onnx", FORMATS["int4-sym"], grids)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("calibration", "given", "said"),
    [
        ("gptq", False, "no grids are given.*use"),
        ("none", True, "calibration is none and grids are given.*use"),
    ],
)
def test_grids_and_calibration_go_together(
    checkpoint: Artifact, tmp_path: Path, calibration: str, given: bool, said: str
) -> None:
    weights = WeightSettings(bits=4, group_size=32, calibration=calibration)
    grids = grids_of(checkpoint, FORMATS["int4-sym"]) if given else None
    with pytest.raises(CompressionError, match=said):
        build_onnx(checkpoint, weights, (), tmp_path, grids)
    assert not list(tmp_path.iterdir())
