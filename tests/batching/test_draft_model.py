"""Drafts: a shallow copy of the model itself, or a student that an earlier distill stage left in the store."""

import json
from pathlib import Path

import pytest
from tiny_llama import tiny_llama

from configs.engine import EngineSettings
from configs.schema import RequestSettings
from configs.speculation import DraftModel, DraftSearch
from configs.weights import WeightSettings
from tasks.batching.draft_model import draft_artifact, draft_checkpoint, find_student, shallow_copy
from tasks.batching.speculate import speculating
from tasks.models.checkpoint import read_architecture
from tasks.profiling.memory_budget import serving_budget
from tasks.release.candidate import Candidate
from tasks.release.draft_memory import checkpoint_of, draft_budget
from tasks.store.artifact import Artifact
from tasks.store.errors import MissingArtifact
from tasks.store.store import Store


def sealed(store: Store, layers: int, parent: str | None = None, **recipe: object) -> Artifact:
    def build(out: Path) -> None:
        tiny_llama(out, layers=layers)
        (out / "seed").write_text(str(recipe))

    return store.seal(build, kind="checkpoint", parent=parent, recipe=recipe)


def test_a_shallow_copy_is_the_first_layers_with_the_model_as_parent(store: Store) -> None:
    from safetensors.numpy import load_file

    target = sealed(store, layers=6)
    copy = shallow_copy(store, target, 0.34)
    assert copy.manifest.parent == target.digest
    assert copy.manifest.recipe == {"step": "shallow copy", "layers": 2}
    assert read_architecture(copy).layers == 2
    whole, part = (load_file(each.folder / "model.safetensors") for each in (target, copy))
    assert {name for name in whole if "layers." not in name} <= part.keys()
    for name, tensor in part.items():
        assert (tensor == whole[name]).all(), name
    assert shallow_copy(store, target, 0.34).digest == copy.digest
    assert read_architecture(shallow_copy(store, target, 0.01)).layers == 1


def test_a_student_of_this_model_is_taken_before_a_copy(store: Store) -> None:
    target, stranger = sealed(store, layers=6), sealed(store, layers=5, name="stranger")
    assert find_student(store, target) is None
    assert draft_checkpoint(store, target, DraftSearch()).manifest.recipe["step"] == "shallow copy"
    start = sealed(store, 4, target.digest, step="prune")
    student = sealed(store, 4, start.digest, step="distill")
    sealed(store, 3, stranger.digest, step="distill")
    assert find_student(store, target) == student
    assert draft_checkpoint(store, target, DraftSearch()) == student
    shallow = draft_checkpoint(store, target, DraftSearch(source="shallow"))
    assert shallow.manifest.recipe["step"] == "shallow copy"
    assert draft_checkpoint(store, target, DraftSearch(source=start.digest)) == start
    with pytest.raises(MissingArtifact):
        draft_checkpoint(store, target, DraftSearch(source="f" * 64))


def test_a_draft_is_exported_for_the_engine_and_knows_its_line(store: Store) -> None:
    from tasks.compression.build import build_artifact

    search = DraftSearch()
    target = sealed(store, layers=3)
    exported = build_artifact(store, target, "openvino", search.weights, ())
    copy = shallow_copy(store, target, search.layers_fraction)
    draft = draft_artifact(store, copy, exported, search)
    assert draft.kind == "openvino"
    assert draft.manifest.recipe["weights"]["bits"] == 8
    assert json.loads((draft.folder / "config.json").read_text())["num_hidden_layers"] == 1
    assert checkpoint_of(store, draft) == copy
    assert checkpoint_of(store, exported) == target
    assert draft_artifact(store, draft, exported, search) == draft
    assert _budgets(store, target, exported, draft) == (
        1 / 3,
        0,
    )  # one layer of three; the engine itself is there once


def _budgets(store: Store, target: Artifact, exported: Artifact, draft: Artifact) -> tuple[float, int]:
    """Share of the model's cache that its draft adds, and the engine's own memory that it adds."""
    plain = EngineSettings(engine="openvino")
    requests = RequestSettings()
    candidate = Candidate(name="plain", artifact=exported.digest, engine=plain, weights="int8")
    assert draft_budget(store, candidate, requests) is None
    drafting = DraftModel(draft=draft.digest, block_tokens=2)
    added = draft_budget(store, speculating(candidate, drafting), requests)
    alone = serving_budget(read_architecture(target), WeightSettings(bits=8), plain, requests)
    assert added is not None
    assert 0 < added.weights_bytes < alone.weights_bytes
    assert added.total_bytes < alone.total_bytes - alone.runtime_bytes
    return added.kv_cache_bytes / alone.kv_cache_bytes, added.runtime_bytes
