"""A tiny model and its f32 graph for ONNX Runtime."""

from pathlib import Path

import pytest
from tiny_llama import tiny_llama

from configs.weights import WeightSettings
from tasks.compression.onnx import build_onnx
from tasks.store.artifact import Artifact
from tasks.store.store import Store


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


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store that the tests of a file share."""
    return Store(tmp_path_factory.mktemp("store"))
