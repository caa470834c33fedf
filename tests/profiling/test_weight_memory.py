"""The closed form of the stored bytes against weight files that NNCF wrote."""

from pathlib import Path

import pytest
from tiny_llama import TEXTS, tiny_llama

from configs.weights import WeightSettings
from tasks.compression.openvino import compress_openvino, export_openvino
from tasks.compression.openvino_matrices import weight_formats
from tasks.models.checkpoint import Architecture, read_architecture
from tasks.profiling.weight_memory import weight_bytes
from tasks.store.artifact import Artifact, Manifest
from tasks.store.verification import describe_files

FOUR = WeightSettings(bits=4, group_size=32, calibration_samples=24)
NAMED = ("model.layers.0.mlp.up_proj", "model.layers.1.self_attn.v_proj")


def _with(weights: WeightSettings, **changes: object) -> WeightSettings:
    return WeightSettings.model_validate(weights.model_dump() | changes)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Architecture]:
    checkpoint = tiny_llama(tmp_path_factory.mktemp("tiny") / "model", layers=2)
    out = tmp_path_factory.mktemp("ir")
    export_openvino(checkpoint, out)
    manifest = Manifest(kind="openvino", files=describe_files(out))
    return Artifact(digest="0" * 64, folder=out, manifest=manifest), read_architecture(checkpoint)


@pytest.mark.parametrize(
    "weights",
    [
        WeightSettings(bits=8),
        WeightSettings(bits=8, symmetric=False, embedding_bits=16),
        FOUR,
        _with(FOUR, symmetric=False, embedding_bits=4),
        _with(FOUR, group_size=-1, embedding_bits=32),
        _with(FOUR, number="nf4"),
        _with(FOUR, number="nf4", embedding_bits=4),
        _with(FOUR, int8_layers=NAMED),
        _with(FOUR, symmetric=False, int8_layers=NAMED, calibration="lora_correction"),
        _with(FOUR, calibration="lora_correction"),
    ],
    ids=lambda weights: weights.label,
)
def test_openvino_file_within_one_percent(
    tiny: tuple[Artifact, Architecture], tmp_path: Path, weights: WeightSettings
) -> None:
    """Shapes and small constants, the same in every file, are a few percent of so small a model: left out of both."""
    exported, architecture = tiny
    constants = weight_formats(exported.folder).file_bytes - weight_bytes(
        architecture, WeightSettings(), "openvino"
    )
    compress_openvino(exported, weights, TEXTS, tmp_path)
    found = weight_formats(tmp_path).file_bytes - constants
    assert weight_bytes(architecture, weights, "openvino") == pytest.approx(found, rel=0.01)
