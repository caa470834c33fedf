"""A tiny model and its f32 graph for ONNX Runtime."""

from pathlib import Path

import pytest
from tiny_llama import tiny_llama

from configs.weights import WeightSettings
from tasks.compression.onnx import build_onnx
from tasks.store.artifact import Artifact


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Two layers."""
    return tiny_llama(tmp_path_factory.mktemp("tiny"), layers=2)


@pytest.fixture(scope="session")
def float_graph(checkpoint: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    out = tmp_path_factory.mktemp("f32")
    build_onnx(checkpoint, WeightSettings(), (), out)
    return out / "model.onnx"
