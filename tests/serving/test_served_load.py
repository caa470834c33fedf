"""A load on real engines: the tiny model on OpenVINO and ONNX Runtime, every request answered as it would be alone."""

from pathlib import Path

import pytest
from pydantic import TypeAdapter
from tiny_llama import tiny_llama

from configs.engine import EngineSettings, SchedulerSettings
from configs.load_profile import LoadSettings
from configs.weights import WeightSettings
from tasks.batching.prefix_check import check_prefix_cache
from tasks.compression.onnx import build_onnx
from tasks.compression.openvino import export_openvino
from tasks.engines.open import open_engine
from tasks.engines.streaming_open import open_streaming
from tasks.serving.load_driver import LoadDriver
from tasks.serving.load_measures import summarize_runs
from tasks.serving.workload import make_workload
from tasks.store.artifact import Artifact, Manifest

TEXT = [20 + (7 * i * i) % 240 for i in range(2000)]
LOAD = TypeAdapter(LoadSettings).validate_python(
    {"kind": "poisson", "requests_per_s": 200, "requests": 12, "min_prompt_tokens": 8, "max_prompt_tokens": 70,
     "min_new_tokens": 2, "max_new_tokens": 9, "slo": {"ttft_ms": 60_000, "itl_ms": 60_000},
     "shared_prefix": {"rate": 0.5, "tokens": 32}}
)  # fmt: skip


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    checkpoint = tiny_llama(tmp_path_factory.mktemp("tiny") / "model")
    folders: dict[str, Path] = {name: tmp_path_factory.mktemp(name) for name in ("openvino", "onnxruntime")}
    export_openvino(checkpoint, folders["openvino"])
    build_onnx(checkpoint, WeightSettings(), (), folders["onnxruntime"])
    return {
        name: Artifact(digest="1" * 64, folder=folder, manifest=Manifest(kind=name, files=()))  # type: ignore[arg-type]
        for name, folder in folders.items()
    }


def settings(engine: str, **scheduler: object) -> EngineSettings:
    given = {"max_num_seqs": 3, "max_num_batched_tokens": 64, "cache_mib": 16, **scheduler}
    return EngineSettings(engine=engine, threads=1, scheduler=SchedulerSettings(**given))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_every_request_is_served_whole_and_in_time_order(artifacts: dict[str, Artifact], name: str) -> None:
    workload = make_workload(LOAD, TEXT)
    engine = open_streaming(artifacts[name], settings(name), sequence_tokens=workload.longest_tokens)
    run = LoadDriver(engine).run(workload)
    engine.close()
    assert [len(each.token_times_s) for each in run.requests] == [r.max_new_tokens for r in workload.requests]
    for each, at_s in zip(run.requests, workload.arrivals_s or (), strict=True):
        assert each.arrived_s == at_s <= each.admitted_s < each.token_times_s[0]
        assert min(each.gaps_s) >= 0
    assert max(step.running for step in run.steps) <= run.slots == 3
    measures = summarize_runs([run], LOAD.slo)
    assert measures.slo_attainment.mean == 1
    assert 0 < measures.slot_utilization.mean <= 1
    assert 0 <= measures.cache.wasted_fraction_paged < measures.cache.wasted_fraction_contiguous


@pytest.mark.parametrize("kv_cache", ["f32", "u8"])
def test_a_prefix_cache_says_the_same(artifacts: dict[str, Artifact], kv_cache: str) -> None:
    with (
        open_engine(
            artifacts["openvino"], settings("openvino").model_copy(update={"kv_cache": kv_cache})
        ) as plain,
        open_engine(
            artifacts["openvino"],
            settings("openvino", prefix_caching=True).model_copy(update={"kv_cache": kv_cache}),
        ) as cached,
    ):
        check = check_prefix_cache(plain, cached, TEXT)
    assert (check.answers, check.changed) == (12, 0)


def test_a_cache_that_says_something_else_is_found(artifacts: dict[str, Artifact]) -> None:
    """An f32 graph against the same with a 4-bit cache stands for a cache that is wrong."""
    with (
        open_engine(artifacts["openvino"], settings("openvino")) as plain,
        open_engine(
            artifacts["openvino"], settings("openvino").model_copy(update={"kv_cache": "u4"})
        ) as wrong,
    ):
        assert check_prefix_cache(plain, wrong, TEXT).changed > 0
