"""Candidates side by side: the same results as one after another, in processes of their own, and clear refusals of what cannot be."""

import importlib.machinery
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tiny_llama import tiny_llama

from configs.engine import EngineSettings
from configs.load import ConfigError
from configs.model import FolderSource, ModelSettings
from configs.quantize import ParallelSettings
from configs.schema import Config
from configs.space import WeightCandidate
from tasks.quantization import fan_out, search
from tasks.quantization.fan_out import ScreenJob, check_parallel, screened_alone
from tasks.quantization.preflight import machine_limits
from tasks.release.preparation import make_workspace
from tasks.release.quiet import at_work, quiet
from tasks.release.stage_result import CandidateResult
from tasks.release.workspace import Workspace
from tasks.store.errors import StoreError
from tasks.store.store import Store

INT8 = {"engine": "openvino", "weights": {"bits": 8, "symmetric": False}, "kv_cache": ["u8", "f32"]}
INT4 = {"engine": "openvino", "weights": {"bits": 4, "group_size": 32}, "kv_cache": ["u8"]}
IMPOSSIBLE = {
    "engine": "onnxruntime",
    "weights": {"bits": 8, "symmetric": False, "activations": "int8_dynamic", "group_size": 32},
}


def settings(model: Path, **quantize: object) -> Config:
    return Config.model_validate(
        {
            "name": "fan",
            "threads": 1,
            "model": ModelSettings(name="tiny", source=FolderSource(kind="folder", path=str(model))),
            "quality": {
                "margins": {"accuracy": None},
                "reference": {"engine": "openvino", "threads": 1},
                "text": {"section_characters": 200, "search_sections": 4},
                "tries": 1,
            },
            "quantize": {"candidates": [INT8, IMPOSSIBLE, INT4], **quantize},
        }
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fan") / "model"
    tiny_llama(folder, layers=2)
    return folder


def workspace(config: Config, home: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("KEIRYO_HOME", str(home))
    return make_workspace(config)


def figures(results: list[CandidateResult]) -> list[dict[str, object]]:
    """All but what building took, and addresses: exporters number the nodes of a graph through the life of a process."""
    return [
        each.model_dump(mode="json", exclude={"metrics": True, "candidate": {"artifact"}}) for each in results
    ]


def test_processes_give_what_one_after_another_gives(model, tmp_path, monkeypatch):
    """Two empty stores: everything is built and scored twice, once here and once in two processes at a time."""
    here = workspace(settings(model), tmp_path / "serial", monkeypatch)
    serial = search._screen_all(here, here.config.quantize, None)
    there = workspace(settings(model), tmp_path / "parallel", monkeypatch)
    monkeypatch.setenv("KEIRYO_HOME", str(tmp_path / "elsewhere"))  # the job says where the store is

    def two_at_a_time(jobs):
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(screened_alone, jobs))

    parallel = search._screen_all(there, there.config.quantize, two_at_a_time)
    assert figures(parallel) == figures(serial)
    assert [bool(each.screen) for each in parallel] == [True, True, False, True]
    assert parallel[2].error.startswith("CompressionError")
    # One artifact was built for the first two, and its memory is that of its own process.
    costs = [each.metrics for each in parallel if each.error is None]
    assert costs[0] == costs[1]
    assert all(cost["mem/build_peak_mib"] > 0 for cost in costs)
    assert len(list((there.store.home / "artifacts").iterdir())) == len(
        list((here.store.home / "artifacts").iterdir())
    )


@pytest.fixture
def place(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setattr(fan_out, "CandidateScores", NoScores)
    return workspace(settings(model, budget_minutes=5), tmp_path / "store", monkeypatch)


class NoScores:
    """The source's scores, which these tests do not need."""

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> "NoScores":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def text(self) -> None:
        pass


def screened(job: ScreenJob) -> CandidateResult:
    return CandidateResult(name=job.name, candidate=None, measurement=None, screen={"kl_nats": 1.0})


def test_refused_ones_are_not_handed_out_and_order_is_kept(place, monkeypatch):
    names = ["openvino int8 asym per channel, u8 cache", "openvino int4 sym g32, u8 cache"]
    monkeypatch.setattr(search, "refusals", lambda workspace: {names[0]: "too large"})
    handed: list[str] = []

    def reversed_map(jobs):
        handed.extend(job.name for job in jobs)
        return [screened(job) for job in reversed(jobs)][::-1]

    results = search._screen_all(place, place.config.quantize, reversed_map)
    assert results[0].name == names[0]
    assert results[0].dropped == "too large"
    assert names[0] not in handed
    assert [each.name for each in results[1:]] == handed


def test_no_candidate_is_begun_after_the_budget_but_the_first(place, monkeypatch):
    jobs: list[ScreenJob] = []
    search._screen_all(
        place, place.config.quantize, lambda each: jobs.extend(each) or [screened(job) for job in each]
    )
    assert [job.until_s is None for job in jobs] == [True, False, False, False]
    late = jobs[1].model_copy(update={"until_s": time.time() - 1})
    monkeypatch.setattr(fan_out, "run_fresh", lambda *_: pytest.fail("it was begun"))
    assert screened_alone(late).dropped == "not tried: quantize.budget_minutes (5) was spent"


def test_a_process_that_dies_costs_its_candidate(place, monkeypatch):
    monkeypatch.setattr(fan_out, "run_fresh", lambda *_: "it ended with status -9: it said nothing")
    result = screened_alone(job_of(place))
    assert result.candidate is None
    assert "did not answer; it ended with status -9" in str(result.error)


def test_a_worker_that_does_not_see_the_store_says_so(place, tmp_path):
    job = job_of(place).model_copy(update={"store": tmp_path / "not mounted"})
    with pytest.raises(StoreError, match=r"sees no store of this rollout at .*not mounted"):
        screened_alone(job)
    assert not (tmp_path / "not mounted").exists()


def job_of(place: Workspace) -> ScreenJob:
    declared = place.config.quantize.candidates[0]
    return ScreenJob.of(place, declared, search._engines(place, declared, place.config.quantize)[0], None)


def test_a_measurement_waits_for_builds_and_builds_for_it(store: Store):
    order: list[str] = []
    building, measuring = threading.Event(), threading.Event()

    def build(name: str) -> None:
        with at_work(Store(store.home)):
            order.append(f"{name} begins")
            building.set()
            time.sleep(0.3)
            order.append(f"{name} ends")

    def measure() -> None:
        building.wait()
        with quiet(Store(store.home)):
            measuring.set()
            order.append("measured")
            time.sleep(0.3)
            order.append("measured to the end")

    with ThreadPoolExecutor(4) as pool:
        first, second = pool.submit(build, "a"), pool.submit(build, "b")
        measured = pool.submit(measure)
        third = pool.submit(lambda: measuring.wait() and build("c"))
        for each in (first, second, measured, third):
            each.result()
    assert set(order[:2]) == {"a begins", "b begins"}  # builds share
    assert order[4:6] == ["measured", "measured to the end"]
    assert order[6:] == ["c begins", "c ends"]


def test_too_many_threads_for_the_cores_are_refused(monkeypatch):
    monkeypatch.setattr(fan_out.os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    check_parallel(ParallelSettings(workers=2), threads=2, server=None)
    check_parallel(ParallelSettings(workers=1), threads=8, server=None)
    with pytest.raises(
        ConfigError, match=r"they need 8 cores, this machine has 4, .* threads: 1 or workers: 2"
    ):
        check_parallel(ParallelSettings(workers=4), threads=2, server=None)


@pytest.mark.parametrize(("runner", "package"), [("dask", "prefect-dask"), ("ray", "prefect-ray")])
def test_a_runner_without_its_package_or_its_server_is_refused(runner, package, monkeypatch):
    remote = ParallelSettings(runner=runner, workers=64, address="tcp://10.0.0.1:8786")
    monkeypatch.setattr(fan_out, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf'needs package {package}; `uv pip install -e "\.\[{runner}\]"`'):
        check_parallel(remote, threads=2, server="http://127.0.0.1:4200/api")

    asked: list[str] = []
    spec = importlib.machinery.ModuleSpec("installed", None)
    monkeypatch.setattr(fan_out, "find_spec", lambda name: asked.append(name) or spec)
    with pytest.raises(ConfigError, match="set PREFECT_API_URL"):
        check_parallel(remote, threads=2, server=None)
    check_parallel(remote, threads=2, server="http://127.0.0.1:4200/api")
    assert set(asked) == {package.replace("-", "_")}


def test_an_address_needs_a_cluster():
    with pytest.raises(ValueError, match="set runner to dask or ray"):
        ParallelSettings(address="tcp://10.0.0.1:8786")


def test_workers_of_this_machine_share_its_memory(place):
    alone = machine_limits(place.config, place.store).memory_mib
    shared = place.config.quantize.model_copy(update={"parallel": ParallelSettings(workers=4)})
    limits = machine_limits(place.config.model_copy(update={"quantize": shared}), place.store)
    assert limits.memory_mib == pytest.approx(alone / 4, rel=0.1)


def test_a_checkpoint_for_vllm_is_built_and_recorded_with_what_serving_it_needs(model, tmp_path, monkeypatch):
    monkeypatch.setenv("KEIRYO_VLLM_PYTHON", str(tmp_path / "none"))
    place = workspace(settings(model), tmp_path / "store", monkeypatch)
    weights = {"bits": 4, "group_size": 32, "embedding_bits": 16}
    declared = WeightCandidate.model_validate({"engine": "vllm", "compute": "bf16", "weights": weights})
    settings_ = EngineSettings(engine="vllm", compute="bf16", kv_cache="bf16", threads=1)
    result = search.screen_one(place, declared, settings_)
    assert result.candidate is not None
    assert place.store.open(result.candidate.artifact).kind == "vllm"
    assert "make vllm" in str(result.error)
    assert result.screen == {}
