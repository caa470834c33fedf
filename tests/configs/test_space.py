"""A product of settings holds what is possible, each once, and says how much of it that is."""

import itertools
from pathlib import Path

import pytest

from configs.engine import EngineSettings
from configs.engine_formats import why_impossible
from configs.load import ConfigError, load_config
from configs.quantize import QuantizeSettings
from configs.space import QuantizeSpace, WeightCandidate
from configs.weights import WeightSettings
from tasks.compression import onnx_rules, openvino_checks
from tasks.compression.error import CompressionError

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo.yaml"


def expanded(**values: object) -> list[str]:
    space = QuantizeSpace.model_validate(values)
    return [
        f"{each.engine} {each.weights.label}, {each.kv_cache[0]}, g{each.activation_group}"
        for each in space.candidates
    ]


def test_every_possible_combination_is_there_once():
    found = expanded(engine=["openvino"], bits=[8, 4], symmetric=[True, False], group_size=[64, 128])
    assert found == [
        "openvino int8 sym per channel, f32, g0",  # its 8-bit weights know no groups: two combinations are one
        "openvino int8 asym per channel, f32, g0",
        "openvino int4 sym g64, f32, g0",
        "openvino int4 sym g128, f32, g0",
        "openvino int4 asym g64, f32, g0",
        "openvino int4 asym g128, f32, g0",
    ]


def test_what_is_impossible_is_left_out_and_nothing_else():
    budgets = {"max_bytes_fraction": [None, 0.18], "int8_ratio": [0.0, 0.2]}
    found = expanded(bits=[4], symmetric=[False], calibration=["none", "gptq", "awq", "hqq"], **budgets)
    assert found == [
        "openvino int4 asym g64, f32, g0",
        "openvino int4 asym g64 20% int8, f32, g0",
        "openvino int4 asym g64 gptq, f32, g0",
        "openvino int4 asym g64 gptq within 18% of f32, f32, g0",
        "openvino int4 asym g64 awq, f32, g0",
        "openvino int4 asym g64 awq 20% int8, f32, g0",
        "onnxruntime int4 asym g64, f32, g0",
        "onnxruntime int4 asym g64 gptq, f32, g0",
        "onnxruntime int4 asym g64 gptq within 18% of f32, f32, g0",
        "onnxruntime int4 asym g64 hqq, f32, g0",
    ]


def test_output_feedback_multiplies_what_gptq_rounds_and_nothing_else():
    options = {"engine": ["openvino"], "bits": [8, 4], "symmetric": [True], "output_feedback": [False, True]}
    assert expanded(calibration=["none", "gptq"], **options) == [
        "openvino int8 sym per channel, f32, g0",
        "openvino int8 sym per channel gptq, f32, g0",
        "openvino int4 sym g64, f32, g0",
        "openvino int4 sym g64 gptq, f32, g0",
        "openvino int4 sym g64 gptq with output feedback, f32, g0",
    ]


def test_settings_that_an_engine_lacks_do_not_rule_it_out():
    assert expanded(bits=[8], symmetric=[True], activation_group=[32], compute=["bf16"], kv_cache=["u8"]) == [
        "openvino int8 sym per channel, u8, g32",
        "onnxruntime int8 sym g64, u8, g0",
    ]


def test_activations_go_in_groups_of_a_multiple_of_16():
    asked = {"bits": [8], "engine": ["openvino"], "symmetric": [True], "activation_group": [96, 100]}
    assert expanded(**asked) == ["openvino int8 sym per channel, f32, g96"]
    with pytest.raises(ValueError, match="activation_group is 100; OpenVINO quantizes activations in groups"):
        EngineSettings(engine="openvino", activation_group=100)


def test_beside_4_bits_groups_of_activations_divide_those_of_the_weights():
    """For others OpenVINO computes with float activations, whatever the candidate is called."""
    asked = {"bits": [4], "engine": ["openvino"], "symmetric": [True], "group_size": [64, 128]}
    assert expanded(**asked, activation_group=[128]) == ["openvino int4 sym g128, f32, g128"]
    four = {"engine": "openvino", "weights": {"bits": 4, "group_size": 64}, "activation_group": 96}
    for weights in (four["weights"], {"bits": 4, "group_size": 96, "number": "nf4"}, {"bits": 32}):
        with pytest.raises(ValueError, match=r"activation_group is 96 with .*; OpenVINO quantizes"):
            WeightCandidate.model_validate(four | {"weights": weights})


def test_the_size_is_said():
    space = QuantizeSpace.model_validate({"engine": ["openvino"], "compute": ["f32", "bf16"], "bits": [8]})
    assert space.said == "2 candidates, of 4 combinations"  # bf16 with a f32 cache is refused by OpenVINO


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "quantize.space={engine: [onnxruntime], number: [nf4], bits: [8]}",
            "none of its 2 combinations is possible",
        ),
        ("quantize.space={engine: [openvino], bits: [4], calibration: [hqq]}", "calibration on openvino"),
        ("quantize.space={engine: []}", "quantize.space.0.engine = []"),
        ("quantize.space={engin: [openvino]}", "did you mean engine?"),
        ("quantize={candidates: []}", "nothing to try; give candidates, a space, or both"),
    ],
)
def test_a_space_that_cannot_be_used_is_bad_input(override, said):
    with pytest.raises(ConfigError) as refused:
        load_config(DEMO, [override])
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_candidates_and_spaces_are_declared_together_each_once():
    int8 = {"engine": "openvino", "weights": {"bits": 8}, "kv_cache": ["u8", "f32"]}
    space = {"engine": ["openvino"], "bits": [8], "kv_cache": ["u8"]}
    both = QuantizeSettings.model_validate({"candidates": [int8], "space": [space, space]})
    assert [(each.weights.symmetric, each.kv_cache) for each in both.declared] == [
        (True, ("u8",)),
        (True, ("f32",)),
        (False, ("u8",)),
    ]


def every_format() -> list[WeightSettings]:
    """Every value that a rule of an engine asks for, where the settings themselves are possible."""
    axes = {
        "bits": (4, 8, 16, 32),
        "number": ("int", "nf4"),
        "symmetric": (True, False),
        "group_size": (-1, 64, 48),
        "calibration": (
            "none",
            "gptq",
            "awq+scale_estimation",
            "lora_correction",
            "nncf_gptq",
            "hqq",
            "k_quant",
            "source_grid",
        ),
        "int8_ratio": (0.0, 0.2, 1.0),
        "embedding_bits": (4, 8, 16),
        "activations": ("float", "int8_dynamic", "int8_static"),
    }
    found = []
    for values in itertools.product(*axes.values()):
        try:
            found.append(WeightSettings.model_validate(dict(zip(axes, values, strict=True))))
        except ValueError:
            continue
    return found


def refuses(check: object, *arguments: object, **more: object) -> bool:
    try:
        check(*arguments, **more)  # type: ignore[operator]
    except CompressionError:
        return True
    return False


def test_the_rules_are_those_of_the_builders(monkeypatch):
    for name in ("_check_group_size", "_check_named"):  # they ask the model
        monkeypatch.setattr(openvino_checks, name, lambda model, weights: None)
    openvino, onnx = EngineSettings(engine="openvino"), EngineSettings(engine="onnxruntime")
    formats = every_format()
    assert len(formats) > 500
    for weights in formats:
        grids = weights.is_from_grids
        said = refuses(onnx_rules.check_possible, weights, calibration_texts=8, grids=grids)
        assert said == (why_impossible(weights, onnx) is not None), weights
        if not grids:  # else past NNCF
            said = refuses(openvino_checks.check_possible, None, weights)
            assert said == (why_impossible(weights, openvino) is not None), weights
