"""The layers that a mixed-precision artifact keeps at 8 bits, by the names that they have in the checkpoint."""

from pathlib import Path

import pytest
import torch
from tiny_llama import tiny_llama

from configs.weights import WeightSettings
from tasks.adaptation.eight_bit import eight_bit_layers
from tasks.compression.block_inputs import linear_layers
from tasks.compression.openvino import compress_openvino, export_openvino
from tasks.store.artifact import Artifact, Manifest
from tasks.store.verification import describe_files
from tasks.training.checkpoint import load_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def exported(tiny: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("f32")
    export_openvino(tiny, folder)
    return openvino_artifact(folder, tiny)


def openvino_artifact(folder: Path, tiny: Artifact) -> Artifact:
    manifest = Manifest(kind="openvino", files=describe_files(folder))
    return Artifact(digest="1" * 64, folder=folder, manifest=manifest)


@pytest.mark.parametrize("symmetric", [True, False])
def test_layers_that_nncf_keeps_at_eight_bits_are_named(
    symmetric: bool, tiny: Artifact, exported: Artifact, tmp_path: Path
) -> None:
    weights = WeightSettings(bits=4, symmetric=symmetric, group_size=32, int8_ratio=0.3, embedding_bits=32)
    compress_openvino(exported, weights, (), tmp_path)
    kept = eight_bit_layers(tmp_path / "openvino_model.xml")

    layers = {
        name: layer.weight.numel()
        for name, layer in linear_layers(load_model(tiny.folder, torch.float32)).items()
    }
    assert kept < set(layers)
    assert 0.2 < sum(layers[name] for name in kept) / sum(layers.values()) < 0.4


def test_no_layer_is_named_where_all_are_at_four_bits(exported: Artifact, tmp_path: Path) -> None:
    compress_openvino(exported, WeightSettings(bits=4, group_size=32), (), tmp_path)
    assert eight_bit_layers(tmp_path / "openvino_model.xml") == frozenset()
