"""What is refused before anything runs, and what is named instead."""

import dataclasses
import shutil
from pathlib import Path

import pytest
from tiny_llama import tiny_llama

from configs.load import ConfigError
from configs.model import FolderSource, ModelSettings
from configs.quantize import QuantizeSettings
from configs.schema import Config
from flows.failures import bad_input
from tasks.compression.build_cost import BuildCost, _asked_key
from tasks.models.checkpoint import Architecture
from tasks.quantization.preflight import Limits, machine_limits, preflight, refusals
from tasks.release.workspace import Workspace
from tasks.store.artifact import Artifact, Manifest
from tasks.store.store import Store

SMOL = Architecture(
    model_type="llama", layers=30, hidden=576, intermediate=1536, heads=9, kv_heads=3, head_dim=64,
    vocabulary=49152, tied_embeddings=True, parameters=134_515_008, context_tokens=8192, dtype="F32",
)  # fmt: skip
INT8 = {"engine": "openvino", "weights": {"bits": 8, "symmetric": False}, "kv_cache": ["u8", "f32"]}
CALIBRATED = {
    "engine": "openvino",
    "weights": {"bits": 4, "group_size": 64, "calibration": "awq+scale_estimation"},
    "kv_cache": ["u8"],
}
ONNX = {"engine": "onnxruntime", "weights": {"bits": 4, "group_size": 32}}
VLLM = {
    "engine": "vllm",
    "compute": "bf16",
    "kv_cache": ["bf16"],
    "weights": {"bits": 4, "group_size": 32, "embedding_bits": 16},
}
AMPLE = Limits(memory_mib=1e5, build_mib=None, disk_mib=1e5)


def workspace(store: Store, *candidates: dict[str, object]) -> Workspace:
    config = Config(
        name="fits",
        model=ModelSettings(name="smol", source=FolderSource(kind="folder", path="models/smol")),
        quantize=QuantizeSettings.model_validate({"candidates": candidates}),
    )
    source = Artifact(digest="a" * 64, folder=Path("none"), manifest=Manifest(kind="checkpoint", files=()))
    return Workspace(config, store, source, SMOL, None, None, "", store.home)  # type: ignore[arg-type]


def test_every_candidate_is_predicted_with_each_cache_type(store):
    found = preflight(workspace(store, INT8, ONNX), AMPLE)
    names = [each.name for each in found.candidates]
    assert names == [
        "openvino int8 asym per channel, u8 cache",
        "openvino int8 asym per channel, f32 cache",
        "onnxruntime int4 sym g32, f32 cache",
    ]
    assert all(each.refused is None for each in found.candidates)
    assert found.kv_factor == pytest.approx(1 / 3)
    assert found.kv_token_bytes == {"u8": 13_680, "f32": 46_080}
    # one artifact and one export each, though the first serves with two caches
    assert found.disk_mib < sum(each.disk_mib for each in found.candidates)
    assert found.seconds == found.candidates[0].seconds + found.candidates[2].seconds
    assert {each.seconds_from for each in found.candidates} == {"rate table"}


def test_a_candidate_over_the_build_limit_is_refused_with_what_would_fit(store):
    limits = AMPLE.model_copy(update={"build_mib": 1000.0})
    said = refusals(workspace(store, INT8, CALIBRATED), limits)
    assert list(said) == ["openvino int4 sym g64 awq+scale_estimation, u8 cache"]
    (reason,) = said.values()
    assert "quantize.max_build_mib is 1000" in reason
    assert "int4 sym g64 on openvino, which calibrates nothing, would fit" in reason


def test_a_source_that_was_never_rounded_has_no_grid_to_keep(store, tmp_path):
    kept = {"bits": 4, "symmetric": False, "group_size": 32, "calibration": "source_grid"}
    asked = workspace(store, INT8, {"engine": "openvino", "weights": kept, "kv_cache": ["u8"]})
    asked = dataclasses.replace(asked, source=tiny_llama(tmp_path / "model"))
    said = refusals(asked, AMPLE)
    assert list(said) == ["openvino int4 asym g32 source_grid, u8 cache"]
    assert "none of the source's 21 linear layers lies on a 4-bit grid in groups of 32" in next(
        iter(said.values())
    )
    shutil.rmtree(tmp_path / "model")
    assert refusals(asked, AMPLE) == said  # looked up once


def test_a_group_of_activations_wider_than_any_layer_would_quantize_none(store):
    said = refusals(
        workspace(store, INT8, INT8 | {"activation_group": 1536}, INT8 | {"activation_group": 1552}), AMPLE
    )
    assert list(said) == [
        f"openvino int8 asym per channel, {cache} cache, activations g1552" for cache in ("u8", "f32")
    ]
    assert all("the widest input of a layer has 1536 values" in reason for reason in said.values())


def test_what_fits_instead_of_output_feedback_can_be_written_down(store):
    weights = {
        "bits": 4,
        "group_size": 64,
        "calibration": "gptq",
        "output_feedback": True,
        "max_bytes_fraction": 0.2,
    }
    declared = CALIBRATED | {"weights": weights}
    (reason,) = refusals(
        workspace(store, INT8, declared), AMPLE.model_copy(update={"build_mib": 1000.0})
    ).values()
    assert "int4 sym g64 on openvino, which calibrates nothing, would fit" in reason
    pairs_mib = 30 * 4 * (3 * 576**2 + 2 * 192**2 + 2 * 3 * 512**2) / 2**20
    with_pairs = preflight(workspace(store, declared), AMPLE).disk_mib
    without = preflight(
        workspace(store, CALIBRATED | {"weights": weights | {"output_feedback": False}}), AMPLE
    ).disk_mib
    assert with_pairs - without == pytest.approx(pairs_mib)


def test_a_pool_that_does_not_fit_names_a_smaller_one(store):
    limits = AMPLE.model_copy(update={"memory_mib": 1800.0})
    (reason, _) = refusals(workspace(store, INT8, ONNX), limits).values()
    assert "serving it needs 2017 MiB of memory, 1800 are available" in reason
    assert "quantize.scheduler.cache_mib: 64 would fit" in reason


def test_what_a_gpu_serves_needs_the_gpus_memory(store):
    place = workspace(store, VLLM | {"device": "cuda"})
    assert refusals(place, AMPLE.model_copy(update={"memory_mib": 1400.0, "gpu_mib": 80_000.0})) == {}
    with pytest.raises(
        ConfigError, match=r"MiB of the GPU.s memory, 1600 are free; .*cache_mib: 64 would fit"
    ):
        preflight(place, AMPLE.model_copy(update={"gpu_mib": 1600.0}))


def test_where_nothing_fits_the_configuration_is_bad_input_in_one_line(store):
    limits = AMPLE.model_copy(update={"build_mib": 300.0})
    with pytest.raises(ConfigError, match="none of 3 fits") as refused:
        preflight(workspace(store, INT8, CALIBRATED), limits)
    assert isinstance(refused.value, bad_input())
    assert "smaller model or a larger machine" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_disk_for_all_of_them_is_needed_at_once(store):
    limits = AMPLE.model_copy(update={"disk_mib": 1200.0})
    with pytest.raises(ConfigError, match="MiB of disk, 1200 are free"):
        preflight(workspace(store, INT8, ONNX), limits)
    assert preflight(workspace(store, INT8), limits).disk_mib < 1200


def test_what_was_built_here_before_is_known_and_what_the_store_has_costs_nothing(store):
    place = workspace(store, ONNX)
    weights = place.config.quantize.candidates[0].weights
    cost = BuildCost(artifact="b" * 64, seconds=7.5, peak_mib=700, predicted_mib=744)
    store.remember(_asked_key(place.source, "onnxruntime", weights), cost)
    (known,) = preflight(place, AMPLE).candidates
    assert (known.seconds, known.seconds_from, known.build_mib) == (7.5, "this machine", 700)
    assert known.disk_mib > 0
    (store.home / "artifacts" / cost.artifact).mkdir()
    (there,) = preflight(place, AMPLE).candidates
    assert (there.seconds, there.seconds_from, there.disk_mib) == (0, "the store", 0)


def test_limits_of_this_machine_are_what_it_has_left(store):
    place = workspace(store, ONNX)
    limits = machine_limits(place.config, store)
    assert limits.memory_mib > 0
    assert limits.disk_mib > 0
    assert limits.build_mib is None


def test_a_checkpoint_for_vllm_is_made_from_the_source_itself(store):
    (said,) = preflight(workspace(store, VLLM), AMPLE).candidates
    assert said.refused is None
    assert (
        110 < said.disk_mib < 130
    )  # half a byte a weight, scales, the embedding in halves; no export beside it
    assert said.seconds == pytest.approx(10, rel=0.05)
