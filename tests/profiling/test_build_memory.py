"""The peak of every kind of build against what was measured, each in a process of its own."""

import pytest

from configs.weights import WeightSettings
from tasks.models.checkpoint import Architecture
from tasks.profiling.build_memory import (
    build_phases,
    candidate_phases,
    exchanged_phases,
    pairs_bytes,
    peak_bytes,
    text_tokens,
)

MIB = 2**20
DEEP = Architecture(
    model_type="llama", layers=30, hidden=576, intermediate=1536, heads=9, kv_heads=3, head_dim=64,
    vocabulary=49152, tied_embeddings=True, parameters=134_515_008, context_tokens=8192, dtype="F32",
)  # fmt: skip
WIDE = DEEP.model_copy(
    update={
        "layers": 8, "hidden": 1024, "intermediate": 3072, "heads": 16, "kv_heads": 4,
        "tied_embeddings": False, "parameters": 197_149_696,
    }
)  # fmt: skip
INT8 = WeightSettings(bits=8, symmetric=False)
INT4 = WeightSettings(bits=4, group_size=64)
CALIBRATED = WeightSettings(bits=4, group_size=64, calibration="awq+scale_estimation")
SERVED = "openvino", "onnxruntime"


@pytest.mark.parametrize(
    ("architecture", "engine", "weights", "measured_mib"),
    [
        (DEEP, "openvino", WeightSettings(), 819),
        (DEEP, "openvino", INT8, 740),
        (DEEP, "openvino", INT4, 692),
        (DEEP, "openvino", CALIBRATED, 1438),
        (DEEP, "onnxruntime", WeightSettings(), 730),
        (DEEP, "onnxruntime", WeightSettings(bits=8, group_size=32), 795),
        (DEEP, "onnxruntime", WeightSettings(bits=4, group_size=32), 743),
        (WIDE, "openvino", WeightSettings(), 919),
        (WIDE, "openvino", INT8, 1004),
        (WIDE, "openvino", CALIBRATED, 1951),
        (WIDE, "onnxruntime", WeightSettings(bits=4, group_size=32), 1141),
    ],
)
def test_predicted_build_peak_is_near_the_measured_one(architecture, engine, weights, measured_mib):
    phases = build_phases(architecture, engine, weights, calibration_tokens=100)
    assert peak_bytes(phases) / MIB == pytest.approx(measured_mib, rel=0.05)
    for phase in phases:
        parts = phase.model_dump(exclude={"name"})
        assert parts.pop("total_bytes") == sum(parts.values())


def test_a_candidate_counts_the_export_that_it_is_made_from():
    assert [p.name for p in candidate_phases(DEEP, "openvino", INT8)] == ["export", "compress"]
    assert peak_bytes(candidate_phases(DEEP, "openvino", INT8)) == peak_bytes(
        build_phases(DEEP, "openvino", WeightSettings())
    )
    assert candidate_phases(DEEP, "openvino", WeightSettings()) == build_phases(
        DEEP, "openvino", WeightSettings()
    )
    assert build_phases(DEEP, "transformers", WeightSettings()) == ()
    assert peak_bytes(()) == 0


def test_a_graph_with_other_weights_is_not_traced():
    phases = exchanged_phases(DEEP, "openvino", INT8)
    assert [phase.name for phase in phases] == ["exchange", "compress"]
    assert peak_bytes(phases) / MIB == pytest.approx(646, rel=0.25)  # the demo's adapted model
    assert [phase.name for phase in exchanged_phases(DEEP, "openvino", WeightSettings())] == ["exchange"]


@pytest.mark.parametrize("engine", SERVED)
def test_a_half_precision_checkpoint_is_there_twice_while_it_is_exported(engine):
    half = DEEP.model_copy(update={"dtype": "BF16"})
    full, converted = (build_phases(a, engine, WeightSettings())[0] for a in (DEEP, half))
    assert converted.source_bytes == full.source_bytes // 2
    assert converted.copies_bytes - full.copies_bytes == 4 * DEEP.parameters


def test_longer_calibration_texts_need_more_up_to_what_is_fed():
    short, long = (build_phases(DEEP, "openvino", CALIBRATED, calibration_tokens=n)[0] for n in (50, 256))
    assert short.name == "statistics"
    assert long.activations_bytes == short.activations_bytes * 256 / 50
    assert text_tokens(["x" * 100, "y" * 400]) == 100
    assert text_tokens(["z" * 100_000]) == 256
    assert text_tokens([]) == 0


@pytest.mark.parametrize("engine", SERVED)
def test_gptq_changes_the_layers_it_has_rounded_and_keeps_a_byte_a_weight(engine):
    weights = WeightSettings(bits=4, group_size=64, calibration="gptq")
    phases = {phase.name: phase for phase in build_phases(DEEP, engine, weights)}
    linear = 106_168_320
    assert (phases["grids"].copies_bytes, phases["grids"].result_bytes) == (4 * linear, linear)
    assert phases["importance"].copies_bytes == 0
    assert "statistics" not in phases
    half = build_phases(DEEP.model_copy(update={"dtype": "BF16"}), engine, weights)[1]
    assert half.copies_bytes == 4 * DEEP.parameters  # converted already: changed in place


@pytest.mark.parametrize("engine", SERVED)
def test_a_source_grid_needs_no_text_and_a_byte_a_weight(engine):
    weights = WeightSettings(bits=4, symmetric=False, group_size=32, calibration="source_grid")
    phases = {phase.name: phase for phase in build_phases(DEEP, engine, weights)}
    assert not {"importance", "statistics"} & set(phases)
    assert phases["grids"].result_bytes == 2 * 106_168_320
    if engine == "openvino":
        plain = weights.model_copy(update={"calibration": "none"})
        (nearest,) = build_phases(DEEP, engine, plain)
        # The integers lie beside the graph, and zero points of 16 bits instead of 4 are in it.
        more = phases["compress"].total_bytes - nearest.total_bytes
        assert more == 106_168_320 + 106_168_320 // 32 * 12 // 8


@pytest.mark.parametrize("engine", SERVED)
def test_output_feedback_keeps_pairs_of_outputs(engine):
    """Queries, output and down projections of 576, keys and values of 192, gate and up in three parts of 512."""
    pairs = 30 * 4 * (3 * 576**2 + 2 * 192**2 + 2 * 3 * 512**2)
    assert pairs_bytes(DEEP) == pairs
    weights = WeightSettings(bits=4, group_size=64, calibration="gptq")
    fed = weights.model_copy(update={"output_feedback": True})
    for plain, more in zip(build_phases(DEEP, engine, weights), build_phases(DEEP, engine, fed), strict=True):
        grows = plain.name in ("importance", "grids")
        assert more.total_bytes - plain.total_bytes == (pairs if grows else 0)
