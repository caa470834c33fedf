"""Rounding in training against the artifact that is served: same layers at 8 bits, same logits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_llama import tiny_llama

from configs.engine import EngineSettings, SchedulerSettings
from configs.weights import WeightSettings
from tasks.adaptation.eight_bit import eight_bit_layers
from tasks.adaptation.recovery import round_linear_layers
from tasks.compression.openvino import compress_openvino, export_openvino
from tasks.engines.openvino_engine import OpenVinoEngine
from tasks.engines.protocol import ScoreRequest
from tasks.store.artifact import Artifact, Manifest
from tasks.store.verification import describe_files
from tasks.training.checkpoint import load_model

IDS = tuple(range(2, 40))


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
def test_training_sees_the_weights_that_are_served(
    symmetric: bool, tiny: Artifact, exported: Artifact, tmp_path: Path
) -> None:
    weights = WeightSettings(bits=4, symmetric=symmetric, group_size=32, int8_ratio=0.3, embedding_bits=32)
    compress_openvino(exported, weights, (), tmp_path)
    kept = eight_bit_layers(tmp_path / "openvino_model.xml")

    model = load_model(tiny.folder, torch.float32)
    layers = {name: m.weight.numel() for name, m in model.named_modules() if name.endswith("_proj")}
    assert kept < set(layers)
    assert 0.2 < sum(layers[name] for name in kept) / sum(layers.values()) < 0.4

    plain = model(input_ids=torch.tensor([IDS])).logits[0, :-1].detach().numpy()
    round_linear_layers(model, weights, kept)
    trained = model(input_ids=torch.tensor([IDS])).logits[0, :-1].detach().numpy()
    settings = EngineSettings(engine="openvino", scheduler=SchedulerSettings(cache_mib=16))
    with OpenVinoEngine.open(openvino_artifact(tmp_path, tiny), settings) as engine:
        served = next(engine.score([ScoreRequest(IDS[:1], IDS[1:])], with_logits=True)).logits
    assert served is not None
    # What is left is the float16 in which the IR multiplies: a hundredth of what the rounding itself does.
    assert np.abs(served - trained).mean() < 0.01 * np.abs(served - plain).mean()


def test_no_layer_is_named_where_all_are_at_four_bits(exported: Artifact, tmp_path: Path) -> None:
    compress_openvino(exported, WeightSettings(bits=4, group_size=32), (), tmp_path)
    assert eight_bit_layers(tmp_path / "openvino_model.xml") == frozenset()
