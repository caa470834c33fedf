from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from tiny_llama import TEXTS, tiny_llama

from configs.engine import EngineSettings, SchedulerSettings
from configs.weights import WeightSettings
from tasks.compression.error import CompressionError
from tasks.compression.openvino import compress_openvino, export_openvino
from tasks.compression.openvino_checks import check_calibrated, check_stored
from tasks.compression.openvino_matrices import MODEL_XML, weight_formats
from tasks.compression.openvino_nncf import compress_weights
from tasks.engines.openvino_engine import OpenVinoEngine
from tasks.engines.protocol import GenerationRequest, ScoreRequest
from tasks.engines.transformers_engine import TransformersEngine
from tasks.store.artifact import Artifact, Manifest
from tasks.store.verification import describe_files

IDS = tuple(range(20, 60))
LAYERS = 3  # seven linear layers each, and the embedding that is also the head


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "model", layers=LAYERS)


@pytest.fixture(scope="module")
def exported(checkpoint: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("ir")
    export_openvino(checkpoint, out)
    return _openvino(out)


def _openvino(folder: Path) -> Artifact:
    manifest = Manifest(kind="openvino", files=describe_files(folder))
    return Artifact(digest="0" * 64, folder=folder, manifest=manifest)


def _logits(artifact: Artifact) -> np.ndarray:
    settings = EngineSettings(engine="openvino", scheduler=SchedulerSettings(cache_mib=16))
    with OpenVinoEngine.open(artifact, settings) as engine:
        logits = next(engine.score([ScoreRequest(IDS[:1], IDS[1:])], with_logits=True)).logits
        assert logits is not None
        return logits


def test_export_keeps_f32_weights_and_the_function(checkpoint: Artifact, exported: Artifact) -> None:
    formats = weight_formats(exported.folder)
    assert set(formats.matrices) == {"f32"}
    with TransformersEngine.open(checkpoint, EngineSettings(engine="transformers")) as engine:
        expected = next(engine.score([ScoreRequest(IDS[:1], IDS[1:])], with_logits=True)).logits
        greedy = engine.generate([GenerationRequest(IDS[:5], 8, ignore_eos=True)])
    np.testing.assert_allclose(_logits(exported), expected, atol=1e-3)
    settings = EngineSettings(engine="openvino", scheduler=SchedulerSettings(cache_mib=16))
    with OpenVinoEngine.open(exported, settings) as engine:
        assert engine.generate([GenerationRequest(IDS[:5], 8, ignore_eos=True)])[0].tokens == greedy[0].tokens


FOUR = WeightSettings(bits=4, group_size=32, calibration_samples=24)
NF4 = FOUR.model_copy(update={"number": "nf4"})
NAMED = ("model.layers.0.mlp.up_proj", "model.layers.2.self_attn.v_proj")
STATIC = WeightSettings(bits=8, activations="int8_static", calibration_samples=24)
ALL_PARTS = "awq+scale_estimation+lora_correction"


def _with(weights: WeightSettings, **changes: object) -> WeightSettings:
    return WeightSettings.model_validate(weights.model_dump() | changes)


@pytest.mark.parametrize(
    ("weights", "expected", "adapters"),
    [
        (WeightSettings(bits=8, symmetric=False), {"u8": 22}, 0),
        (WeightSettings(bits=8, embedding_bits=32), {"i8": 21, "f32": 1}, 0),
        (WeightSettings(bits=8, embedding_bits=16), {"i8": 21, "f16": 1}, 0),
        (FOUR, {"i4": 21, "i8": 1}, 0),
        (_with(FOUR, symmetric=False, embedding_bits=4), {"u4": 22}, 0),
        (_with(FOUR, calibration="awq+scale_estimation"), {"i4": 21, "i8": 1}, 0),
        (_with(FOUR, calibration="nncf_gptq"), {"i4": 21, "i8": 1}, 0),
        (_with(FOUR, calibration="lora_correction"), {"i4": 21, "i8": 1}, 21),
        (_with(FOUR, calibration=ALL_PARTS), {"i4": 21, "i8": 1}, 21),
        (NF4, {"nf4": 21, "i8": 1}, 0),
        (_with(NF4, group_size=-1, embedding_bits=4), {"nf4": 22}, 0),
        (_with(NF4, calibration="awq"), {"nf4": 21, "i8": 1}, 0),
        (_with(FOUR, int8_layers=NAMED), {"i4": 19, "i8": 3}, 0),
        (_with(FOUR, int8_layers=NAMED, symmetric=False, calibration=ALL_PARTS), {"u4": 19, "u8": 3}, 19),
        (_with(NF4, int8_layers=NAMED, calibration="nncf_gptq"), {"nf4": 19, "i8": 3}, 0),
        (STATIC, {"i8": 22}, 0),
        (WeightSettings(bits=16), {"f16": 22}, 0),
    ],
    ids=lambda value: value.label if isinstance(value, WeightSettings) else "",
)
def test_formats_are_stored_and_served(
    exported: Artifact, tmp_path: Path, weights: WeightSettings, expected: dict[str, int], adapters: int
) -> None:
    compress_openvino(exported, weights, TEXTS, tmp_path)
    formats = weight_formats(tmp_path)
    assert (formats.matrices, formats.adapters) == (expected, adapters)
    assert {
        name for name, stored in formats.layers.items() if weights.bits == 4 and stored in ("i8", "u8")
    } == set(weights.int8_layers)
    assert formats.file_bytes < weight_formats(exported.folder).file_bytes
    assert (tmp_path / "openvino_tokenizer.xml").is_file()
    logits = _logits(_openvino(tmp_path))
    assert np.isfinite(logits).all()
    assert 0 < np.abs(logits - _logits(exported)).mean() < 1


@pytest.mark.parametrize(
    "weights", [NF4, _with(FOUR, calibration="lora_correction"), STATIC], ids=lambda w: w.label
)
def test_continuous_batching_decodes_what_scoring_scores(
    exported: Artifact, tmp_path: Path, weights: WeightSettings
) -> None:
    compress_openvino(exported, weights, TEXTS, tmp_path)
    settings = EngineSettings(engine="openvino", scheduler=SchedulerSettings(cache_mib=16))
    with OpenVinoEngine.open(_openvino(tmp_path), settings) as engine:
        made = engine.generate([GenerationRequest(IDS[:5], 6, ignore_eos=True)])[0].tokens
        logits = next(engine.score([ScoreRequest(IDS[:5], made)], with_logits=True)).logits
    assert logits is not None
    chosen = logits[np.arange(6), made]
    np.testing.assert_allclose(chosen, logits.max(axis=1), atol=1e-3)


def test_static_activations_are_rounded_before_every_layer(exported: Artifact, tmp_path: Path) -> None:
    compress_openvino(exported, STATIC, TEXTS, tmp_path)
    formats = weight_formats(tmp_path)
    assert (
        formats.quantized_activations == 4 * LAYERS + 1
    )  # two inputs of attention and of the MLP, and the head's
    assert set(formats.layers) == set(weight_formats(exported.folder).layers)
    assert weight_formats(exported.folder).quantized_activations == 0


def test_a_named_layer_keeps_its_precision(exported: Artifact, tmp_path: Path) -> None:
    """All down projections but one at 8 bits: the graph is nearer to f32 than with all at 4."""
    differences = []
    for number, names in enumerate(((), tuple(f"model.layers.{i}.mlp.down_proj" for i in range(LAYERS)))):
        out = tmp_path / str(number)
        out.mkdir()
        compress_openvino(exported, _with(FOUR, int8_layers=names), TEXTS, out)
        differences.append(np.abs(_logits(_openvino(out)) - _logits(exported)).mean())
    assert differences[1] < differences[0]


def test_mixed_precision_keeps_a_share_at_8_bits(exported: Artifact, tmp_path: Path) -> None:
    compress_openvino(exported, WeightSettings(bits=4, group_size=64, int8_ratio=0.4), TEXTS, tmp_path)
    elements = weight_formats(tmp_path).elements
    linear = elements["i4"] + elements["i8"] - 300 * 64
    assert 0.3 < (elements["i8"] - 300 * 64) / linear < 0.5


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        (WeightSettings(bits=4, group_size=48), "group_size is 48; it must divide the 64 inputs"),
        (WeightSettings(bits=8, group_size=64), "per channel; use group_size: -1"),
        (WeightSettings(bits=8, embedding_bits=4), "use embedding_bits: 8"),
        (_with(FOUR, int8_ratio=1.0), "int8_ratio is 1; .* use bits: 8"),
        (_with(FOUR, calibration="gptq"), "built from grids .* nncf_gptq"),
        (_with(FOUR, calibration="hqq"), "ONNX Runtime's; use engine: onnxruntime"),
        (_with(FOUR, calibration="k_quant"), "ONNX Runtime's; use engine: onnxruntime"),
        (WeightSettings(bits=8, activations="int8_dynamic"), "the engine's activation_group"),
        (_with(STATIC, symmetric=False), "use symmetric: true"),
        (_with(FOUR, embedding_bits=4, calibration="lora_correction"), "token lookup; use embedding_bits: 8"),
        (
            _with(FOUR, int8_layers=("model.layers.1.mlp.up",)),
            "names model.layers.1.mlp.up; .* the nearest is model.layers.1.mlp.up_proj",
        ),
        (
            _with(FOUR, int8_layers=("lm_head",)),
            "int8_layers names lm_head; the model has no such linear layer",
        ),
    ],
    ids=lambda value: value.label if isinstance(value, WeightSettings) else "",
)
def test_impossible_formats(exported: Artifact, tmp_path: Path, weights: WeightSettings, says: str) -> None:
    with pytest.raises(CompressionError, match=says):
        compress_openvino(exported, weights, TEXTS, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("weights", [_with(FOUR, calibration="nncf_gptq"), STATIC], ids=lambda w: w.label)
def test_calibration_without_text_is_an_error(
    exported: Artifact, tmp_path: Path, weights: WeightSettings
) -> None:
    with pytest.raises(CompressionError, match="calibration needs text"):
        compress_openvino(exported, weights, (), tmp_path)


def test_a_method_that_finds_nothing_to_do_is_an_error(exported: Artifact, tmp_path: Path) -> None:
    """NNCF's AWQ rescales down projections only; with all of them at 8 bits it says nothing and rounds to nearest."""
    names = tuple(f"model.layers.{i}.mlp.down_proj" for i in range(LAYERS))
    weights = _with(FOUR, int8_layers=names, calibration="awq")
    with pytest.raises(CompressionError, match="awq left every weight as rounding to nearest"):
        compress_openvino(exported, weights, TEXTS, tmp_path)


def test_a_method_that_changes_the_first_block_alone_has_an_effect(
    exported: Artifact, tmp_path: Path
) -> None:
    """The few layers that are looked at first, the last ones, are as rounding to nearest leaves them."""
    names = tuple(f"model.layers.{i}.mlp.down_proj" for i in range(1, LAYERS))
    compress_openvino(exported, _with(FOUR, int8_layers=names, calibration="awq"), TEXTS, tmp_path)


def test_a_layer_without_its_correction_is_an_error(exported: Artifact) -> None:
    rounded = compress_weights(ov.Core().read_model(exported.folder / MODEL_XML), FOUR, [])
    with pytest.raises(CompressionError, match="corrected 0 of 21 layers"):
        check_calibrated(rounded, exported.folder, _with(FOUR, calibration="lora_correction"))


@pytest.mark.parametrize(
    ("stored", "asked", "says"),
    [
        (FOUR, NF4, "left no matrix in nf4"),
        (FOUR, _with(FOUR, int8_layers=NAMED), f"{NAMED[0]}, {NAMED[1]} came out otherwise"),
        (_with(FOUR, int8_layers=NAMED), _with(FOUR, int8_layers=NAMED[:1]), f"{NAMED[1]} came out otherwise"),
        (WeightSettings(bits=8, embedding_bits=32), WeightSettings(bits=8), "left 1 matrices in f32"),
        (WeightSettings(bits=8), STATIC, "left every activation in float"),
    ],
    ids=["number", "none kept", "one too many", "f32 left", "activations"],
)  # fmt: skip
def test_what_is_stored_must_be_what_was_asked(
    exported: Artifact, tmp_path: Path, stored: WeightSettings, asked: WeightSettings, says: str
) -> None:
    compress_openvino(exported, stored, TEXTS, tmp_path)
    with pytest.raises(CompressionError, match=says):
        check_stored(tmp_path, asked)
