"""A build's cost: measured where something was built, remembered with the artifact, beside its prediction."""

import numpy as np
import pytest
from tiny_llama import tiny_llama

from configs.weights import WeightSettings
from tasks.compression import build_cost as module
from tasks.compression.build_cost import build_cost, build_metrics, expected_cost, measured_build
from tasks.store.store import Store

MIB = 2**20
INT8 = WeightSettings(bits=8, group_size=32)


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BUILDERS", {"onnxruntime": ("numpy",)})
    return tiny_llama(tmp_path / "model", layers=1)


def build(store: Store, checkpoint, growing_mib: int):
    def write(out):
        block = np.ones(growing_mib * MIB, np.uint8)
        (out / "weights").write_bytes(block[:1000].tobytes())

    def made():
        return store.seal(write, kind="onnxruntime", parent=checkpoint.digest)

    return measured_build(store, checkpoint, "onnxruntime", INT8, (), made)


def test_a_build_is_measured_beside_its_prediction(store, checkpoint):
    artifact = build(store, checkpoint, 512)
    cost = build_cost(store, artifact.digest)
    assert cost is not None
    assert cost.peak_mib >= 480  # pages that are shared with processes which come and go move it by some MiB
    assert cost == expected_cost(store, checkpoint, "onnxruntime", INT8)
    metrics = build_metrics(cost)
    assert metrics["mem/build_error_fraction"] == pytest.approx(
        metrics["mem/build_predicted_mib"] / metrics["mem/build_peak_mib"] - 1
    )
    assert build_metrics(None) == {}


def test_grids_that_another_format_left_are_not_predicted_again(store, checkpoint, monkeypatch):
    there = store.seal(lambda out: (out / "a").write_bytes(b"1"), kind="grid", parent=checkpoint.digest)
    predicted = []
    monkeypatch.setattr(module, "peak_bytes", lambda phases: predicted.append({p.name for p in phases}) or 0)
    for group_size in (32, 64):
        weights = WeightSettings(bits=4, group_size=group_size, calibration="gptq")

        def build(size=group_size):
            grids = there
            if size == 32:
                grids = store.seal(
                    lambda out: (out / "b").write_bytes(b"2"), kind="grid", parent=checkpoint.digest
                )
            content = str(size).encode()
            return store.seal(
                lambda out: (out / "w").write_bytes(content),
                kind="onnxruntime",
                parent=checkpoint.digest,
                data={"grids": grids.digest},
            )

        measured_build(store, checkpoint, "onnxruntime", weights, (), build)
    assert predicted[0] - predicted[1] == {"importance", "grids"}
    assert predicted[1]


def test_an_artifact_that_is_there_keeps_the_figures_of_its_build(store, checkpoint):
    first = build(store, checkpoint, 96)
    cost = build_cost(store, first.digest)
    assert build(store, checkpoint, 1) == first
    assert build_cost(store, first.digest) == cost
    assert expected_cost(store, checkpoint, "onnxruntime", INT8.model_copy(update={"bits": 4})) is None


def test_a_by_product_of_another_build_is_looked_for_once(store, checkpoint, monkeypatch):
    """It has no cost of its own; collecting garbage to measure one takes a second a look."""
    there = store.seal(
        lambda out: (out / "weights").write_bytes(b"1"), kind="onnxruntime", parent=checkpoint.digest
    )
    looks = []
    peak = module.MemoryPeak
    monkeypatch.setattr(module, "MemoryPeak", lambda: looks.append(1) or peak())
    for _ in range(3):
        assert measured_build(store, checkpoint, "onnxruntime", INT8, (), lambda: there) == there
    assert len(looks) == 1
    assert build_cost(store, there.digest) is None


def test_what_serves_the_checkpoint_itself_is_not_measured(store, checkpoint):
    assert (
        measured_build(store, checkpoint, "transformers", WeightSettings(), (), lambda: checkpoint)
        is checkpoint
    )
    assert build_cost(store, checkpoint.digest) is None
