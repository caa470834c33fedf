"""Weights exchanged in an exported graph, against the export of the same checkpoint."""

from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_llama import tiny_llama

from configs.weights import WeightSettings
from tasks.compression import openvino as export_module
from tasks.compression.build import build_artifact
from tasks.compression.openvino_exchange import shape_digest
from tasks.compression.openvino_graph import was_exchanged
from tasks.compression.openvino_matrices import MODEL_BIN, MODEL_XML
from tasks.store.artifact import Artifact
from tasks.store.store import Store


def checkpoint(store: Store, folder: Path, seed: int, *, norms: bool = True) -> Artifact:
    """A sealed tiny model; a new one has norms of 1 in every layer, a trained one does not."""
    tiny_llama(folder, layers=2)
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    for tensor in weights.values():
        if norms or tensor.ndim > 1:
            tensor += 0.05 * torch.randn(tensor.shape, generator=generator)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    def copy(out: Path) -> None:
        for file in folder.iterdir():
            (out / file.name).write_bytes(file.read_bytes())

    return store.seal(copy, kind="checkpoint", parent=None, recipe={"seed": seed})


def constants(artifact: Artifact) -> list[np.ndarray]:
    model = ov.Core().read_model(artifact.folder / MODEL_XML)
    return [node.data.copy() for node in model.get_ordered_ops() if node.get_type_name() == "Constant"]


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Digests of the checkpoints that were traced."""
    traced: list[str] = []
    plain = export_module.export_openvino

    def counted(artifact: Artifact, out: Path) -> None:
        traced.append(artifact.digest)
        plain(artifact, out)

    monkeypatch.setattr(export_module, "export_openvino", counted)
    return traced


def test_a_second_checkpoint_of_the_same_shape_gives_the_graph_that_tracing_gives(
    store: Store, tmp_path: Path, exports: list[str]
) -> None:
    first, second = (checkpoint(store, tmp_path / str(seed), seed) for seed in (1, 2))
    assert shape_digest(first) == shape_digest(second)
    build_artifact(store, first, "openvino", WeightSettings(), ())
    exchanged = build_artifact(store, second, "openvino", WeightSettings(), ())
    assert exports == [first.digest]
    assert (was_exchanged(store, first), was_exchanged(store, second)) == (False, True)
    assert exchanged.manifest.parent == second.digest
    elsewhere = Store(tmp_path / "elsewhere")
    copied = elsewhere.seal(
        lambda out: [(out / f.name).write_bytes(f.read_bytes()) for f in (tmp_path / "2").iterdir()],
        kind="checkpoint", parent=None, recipe={},
    )  # fmt: skip
    traced = build_artifact(elsewhere, copied, "openvino", WeightSettings(), ())
    assert exports == [first.digest, copied.digest]
    for ours, theirs in zip(constants(exchanged), constants(traced), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (exchanged.folder / MODEL_BIN).stat().st_size == (traced.folder / MODEL_BIN).stat().st_size


def test_where_two_tensors_are_equal_the_checkpoint_is_traced(
    store: Store, tmp_path: Path, exports: list[str]
) -> None:
    """Norms of 1 in every layer: which constant is whose cannot be told."""
    for seed in (1, 2):
        made = checkpoint(store, tmp_path / str(seed), seed, norms=False)
        build_artifact(store, made, "openvino", WeightSettings(), ())
        assert not was_exchanged(store, made)
    assert len(exports) == 2


def test_a_graph_that_is_gone_is_no_obstacle(store: Store, tmp_path: Path, exports: list[str]) -> None:
    first, second = (checkpoint(store, tmp_path / str(seed), seed) for seed in (1, 2))
    exported = build_artifact(store, first, "openvino", WeightSettings(), ())
    weights = exported.folder / MODEL_BIN
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-8] + b"\x00" * 8)
    build_artifact(store, second, "openvino", WeightSettings(), ())
    assert exports == [first.digest, second.digest]
