"""Exports of a tiny model on the real engine: what agrees, what is broken, and what a fresh process says of them."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_llama import tiny_llama

from configs.engine import EngineSettings
from configs.model import FolderSource, ModelSettings
from configs.schema import Config
from configs.weights import WeightSettings
from tasks.compression.error import CompressionError
from tasks.quantization import reload
from tasks.quantization.parity import check_export, parity_limit
from tasks.quantization.reload import Reloaded, check_reloads
from tasks.release.candidate import Candidate
from tasks.release.greedy import Continuations, agreement
from tasks.release.measuring import make_candidate, source_candidate
from tasks.release.preparation import make_workspace
from tasks.release.workspace import Workspace

FULL = EngineSettings(engine="openvino", scheduler={"cache_mib": 16})


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root = tmp_path_factory.mktemp("parity")
    tiny_llama(root / "model", layers=2)
    config = Config.model_validate(
        {
            "name": "parity",
            "model": ModelSettings(name="tiny", source=FolderSource(kind="folder", path=str(root / "model"))),
            "quality": {
                "margins": {"accuracy": None},
                "reference": FULL,
                "text": {"section_characters": 200, "search_sections": 4},
                "tries": 1,
            },
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEIRYO_HOME", str(root / "store"))
        return make_workspace(config)


@pytest.fixture(scope="module")
def exported(workspace: Workspace) -> Candidate:
    return source_candidate(workspace, FULL)


@pytest.fixture(scope="module")
def int8(workspace: Workspace) -> Candidate:
    return make_candidate(workspace, workspace.source, FULL, WeightSettings(bits=8, symmetric=False))


def sealed_copy(
    workspace: Workspace, candidate: Candidate, parent: str | None, spoil: float = 1.0
) -> Candidate:
    """The artifact once more, with its token table multiplied."""
    origin = workspace.store.open(candidate.artifact)
    table = load_file(workspace.source.folder / "model.safetensors")["model.embed_tokens.weight"]

    def write(out: Path) -> None:
        for entry in origin.manifest.files:
            shutil.copyfile(origin.folder / entry.path, out / entry.path)
        weights = (out / "openvino_model.bin").read_bytes()
        assert table.tobytes() in weights
        spoilt = (table * np.float32(spoil)).tobytes()
        (out / "openvino_model.bin").write_bytes(weights.replace(table.tobytes(), spoilt))

    copy = workspace.store.seal(write, kind="openvino", parent=parent, recipe={"spoil": spoil})
    return candidate.model_copy(update={"artifact": copy.digest, "name": "copy"})


def test_an_honest_export_agrees_and_a_quantized_one_moves(workspace, exported, int8):
    plain, rounded = check_export(workspace, exported), check_export(workspace, int8)
    assert plain.kl_nats < 1e-4
    assert plain.greedy_agreement == 1
    assert 0 < rounded.kl_nats < 0.5
    assert rounded.metrics["quality/parity/top1_agreement"] > 0.5


def test_an_export_that_computes_something_else_is_an_error(workspace, exported):
    broken = sealed_copy(workspace, exported, workspace.source.digest, spoil=1.2)
    with pytest.raises(CompressionError, match="the export is broken"):
        check_export(workspace, broken)


def test_an_export_of_another_checkpoint_is_an_error_however_close_it_is(workspace, exported):
    foreign = sealed_copy(workspace, exported, parent=None)
    with pytest.raises(CompressionError, match="was not made from the source"):
        check_export(workspace, foreign)


def test_a_fresh_process_repeats_the_scores_once_and_tells_altered_weights(workspace, exported, int8):
    check_export(workspace, int8)
    altered = sealed_copy(workspace, exported, workspace.source.digest, spoil=1.01)
    stored = workspace.store.home / "artifacts" / altered.artifact / "openvino_model.bin"
    stored.chmod(0o644)
    stored.write_bytes(stored.read_bytes()[:-4] + b"\x00\x01\x02\x03")
    failed = check_reloads(workspace, [int8, altered])
    assert list(failed) == [altered.artifact]
    assert "DamagedArtifact" in failed[altered.artifact]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("it was reloaded before"))
        assert check_reloads(workspace, [int8]) == {}


def test_scores_that_differ_from_those_of_the_building_process_fail(workspace, exported, monkeypatch):
    wrong = Reloaded(artifact=exported.artifact, nll=(1.0, 2.0))
    monkeypatch.setattr(reload, "_reload", lambda store, jobs: [wrong] if jobs else [])
    said = check_reloads(workspace, [exported])[exported.artifact]
    assert "rounding may bring 0.002" in said


def test_a_child_that_dies_costs_its_artifact_only(workspace, exported, int8, monkeypatch):
    def dies_at_the_first(request):
        rest = [Reloaded(artifact=job.artifact, nll=(1.0,)) for job in request.jobs]
        lines = [] if len(rest) == 2 else rest
        request.answers.write_text("".join(f"{each.model_dump_json()}\n" for each in lines))
        return "it ended with status -11: it said nothing"

    monkeypatch.setattr(reload, "_run_child", dies_at_the_first)
    jobs = [reload._job(workspace, each) for each in (exported, int8)]
    first, second = reload._reload(workspace.store, jobs)
    assert first.error == "it ended with status -11: it said nothing"
    assert (second.artifact, second.error) == (int8.artifact, None)


def test_only_what_nothing_was_rounded_in_is_limited():
    bf16 = FULL.model_copy(update={"compute": "bf16", "kv_cache": "bf16"})
    assert parity_limit(WeightSettings(), FULL) == 1e-4
    assert parity_limit(WeightSettings(), bf16) == 2e-3
    assert parity_limit(WeightSettings(bits=16), FULL) == 2e-3
    assert parity_limit(WeightSettings(), FULL.model_copy(update={"kv_cache": "u8"})) is None
    assert parity_limit(WeightSettings(bits=8), FULL) is None


def test_greedy_agreement_counts_tokens_before_the_first_difference():
    ours = Continuations(tokens=((1, 2, 3, 4), (5, 6, 7, 8)))
    theirs = Continuations(tokens=((1, 2, 9, 4), (5, 6, 7, 8)))
    assert agreement(ours, theirs) == 6 / 8
    assert agreement(ours, ours) == 1
