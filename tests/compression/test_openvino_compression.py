from pathlib import Path

import numpy as np
import pytest
from tiny_llama import TEXTS, tiny_llama

from configs.engine import EngineSettings, SchedulerSettings
from configs.weights import WeightSettings
from tasks.compression.error import CompressionError
from tasks.compression.openvino import compress_openvino, export_openvino, weight_formats
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


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (WeightSettings(bits=8, symmetric=False), {"u8": 22}),
        (WeightSettings(bits=8, embedding_bits=32), {"i8": 21, "f32": 1}),
        (WeightSettings(bits=4, group_size=32), {"i4": 21, "i8": 1}),
        (WeightSettings(bits=4, group_size=32, symmetric=False, embedding_bits=4), {"u4": 22}),
        (WeightSettings(bits=4, group_size=64, calibration="awq+scale_estimation"), {"i4": 21, "i8": 1}),
        (WeightSettings(bits=4, group_size=64, calibration="gptq"), {"i4": 21, "i8": 1}),
        (WeightSettings(bits=16), {"f16": 22}),
    ],
    ids=lambda value: value.label if isinstance(value, WeightSettings) else "",
)
def test_formats(
    exported: Artifact, tmp_path: Path, weights: WeightSettings, expected: dict[str, int]
) -> None:
    compress_openvino(exported, weights, TEXTS, tmp_path)
    formats = weight_formats(tmp_path)
    assert formats.matrices == expected
    assert formats.file_bytes < weight_formats(exported.folder).file_bytes
    assert (tmp_path / "openvino_tokenizer.xml").is_file()
    difference = np.abs(_logits(_openvino(tmp_path)) - _logits(exported)).mean()
    assert 0 < difference < 2


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
    ],
)
def test_impossible_formats(exported: Artifact, tmp_path: Path, weights: WeightSettings, says: str) -> None:
    with pytest.raises(CompressionError, match=says):
        compress_openvino(exported, weights, TEXTS, tmp_path)


def test_calibration_without_text_is_an_error(exported: Artifact, tmp_path: Path) -> None:
    weights = WeightSettings(bits=4, group_size=64, calibration="gptq")
    with pytest.raises(CompressionError, match="calibration needs text"):
        compress_openvino(exported, weights, (), tmp_path)
