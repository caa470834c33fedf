"""A candidate served in a process of its own: the figures of that process, and what its end means to the caller."""

from pathlib import Path

import pytest
from tiny_llama import tiny_llama

from configs.engine import EngineSettings
from configs.model import FolderSource, ModelSettings
from configs.schema import Config
from configs.weights import WeightSettings
from tasks.engines.protocol import EngineError
from tasks.models.checkpoint import read_architecture
from tasks.profiling.memory_budget import serving_budget
from tasks.release import alone
from tasks.release.candidate import Candidate
from tasks.release.greedy import continue_prompts, known_continuations
from tasks.release.measuring import make_candidate, measure_candidate, open_candidate, source_candidate
from tasks.release.preparation import make_workspace
from tasks.release.workspace import Workspace
from tasks.store.errors import DamagedArtifact
from tasks.training.layers import prune_layers

ENGINE = EngineSettings(engine="openvino", scheduler={"cache_mib": 16})
MIB = 2**20


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root = tmp_path_factory.mktemp("alone")
    tiny_llama(root / "model", layers=2)
    config = Config.model_validate(
        {
            "name": "alone",
            "model": ModelSettings(name="tiny", source=FolderSource(kind="folder", path=str(root / "model"))),
            "quality": {
                "margins": {"accuracy": None},
                "reference": ENGINE,
                "text": {"section_characters": 200, "search_sections": 4},
                "tries": 1,
            },
            "requests": {"count": 4, "max_new_tokens": 8, "one_stream_new_tokens": 4, "repeats": 1},
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEIRYO_HOME", str(root / "store"))
        return make_workspace(config)


@pytest.fixture(scope="module")
def candidate(workspace: Workspace) -> Candidate:
    return source_candidate(workspace, ENGINE)


def test_memory_is_that_of_the_candidate_whatever_this_process_holds(workspace, candidate, monkeypatch):
    jobs = []
    real = alone.served_alone
    monkeypatch.setattr(
        "tasks.release.measuring.served_alone", lambda store, job: jobs.append(job) or real(store, job)
    )
    measured = measure_candidate(workspace, candidate, with_continuations=True)
    peak_mib = measured.memory.peak_mib
    assert measured.performance.throughput_tokens_per_s > 0
    assert measured.memory.weights_mib < 1 < peak_mib < 200

    held = bytearray(300 * MIB)
    held[::4096] = b"x" * (len(held) // 4096)
    again = alone.served_alone(workspace.store, jobs[0])
    assert again.peak_bytes / MIB == pytest.approx(peak_mib, abs=max(8.0, 0.15 * peak_mib))
    assert len(held) == 300 * MIB


def test_a_model_of_fewer_layers_is_predicted_as_such(workspace, candidate):
    source = workspace.source
    shallow = workspace.store.seal(
        lambda out: prune_layers(source, (0,), out),
        kind="checkpoint",
        parent=source.digest,
        recipe={"layers": 1},
    )
    student = make_candidate(workspace, shallow, ENGINE, WeightSettings())
    predicted_mib = [measure_candidate(workspace, each).memory.predicted_mib for each in (candidate, student)]
    shapes = [workspace.architecture, read_architecture(shallow)]
    requests = workspace.config.requests
    assert predicted_mib == [
        serving_budget(each, WeightSettings(), ENGINE, requests).total_bytes / MIB for each in shapes
    ]
    assert predicted_mib[1] < predicted_mib[0]


def test_its_continuations_are_those_of_this_process(workspace, candidate):
    measure_candidate(workspace, candidate, with_continuations=True)
    there = known_continuations(workspace, candidate)
    assert there is not None
    assert len(there.tokens) == 4
    with pytest.MonkeyPatch.context() as patch, open_candidate(workspace, candidate) as engine:
        patch.setattr("tasks.release.greedy.NEW_TOKENS", 15)  # another key: asked here, now
        here = continue_prompts(workspace, candidate, engine)
    assert [tokens[:15] for tokens in there.tokens] == list(here.tokens)


def test_a_process_that_dies_is_an_engine_error(workspace, candidate, monkeypatch):
    other = candidate.model_copy(update={"engine": ENGINE.model_copy(update={"kv_cache": "u8"})})
    monkeypatch.setattr(
        alone, "run_fresh", lambda module, request: "it ended with status -9: it said nothing"
    )
    with pytest.raises(EngineError, match="did not answer; it ended with status -9"):
        measure_candidate(workspace, other)


def test_what_the_engine_refuses_there_is_said_here(workspace, candidate):
    wrong = candidate.model_copy(update={"engine": EngineSettings(engine="onnxruntime")})
    with pytest.raises(EngineError, match="cannot load a openvino artifact"):
        measure_candidate(workspace, wrong)


def test_a_damaged_artifact_is_told_before_a_process_is_started(workspace, candidate, monkeypatch):
    origin = workspace.store.open(candidate.artifact)

    def write(out: Path) -> None:
        for entry in origin.manifest.files:
            (out / entry.path).write_bytes((origin.folder / entry.path).read_bytes())

    copy = workspace.store.seal(write, kind="openvino", parent=None, recipe={"copy": 1})
    weights = copy.folder / "openvino_model.bin"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    monkeypatch.setattr(alone, "run_fresh", lambda *_: pytest.fail("a process was started"))
    with pytest.raises(DamagedArtifact):
        measure_candidate(workspace, candidate.model_copy(update={"artifact": copy.digest}))
