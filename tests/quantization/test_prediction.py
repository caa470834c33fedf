"""What is known of some options says what to expect of their relatives, and how surely."""

import math

import numpy as np
import pytest

from configs.quantize import QuantizeSettings
from tasks.quantization.options import Option, served
from tasks.quantization.prediction import DIVERGENCE, ESTIMATE_NOISE, SPEED

SPACE = {
    "engine": ["openvino"], "symmetric": [True], "calibration": ["none", "gptq"], "kv_cache": ["u8", "u4"],
}  # fmt: skip


@pytest.fixture
def options() -> dict[str, Option]:
    settings = QuantizeSettings.model_validate({"space": SPACE})
    found = {}
    for declared in settings.declared:
        for engine in served(declared, settings, 2):
            name = f"{declared.weights.label}, {engine.kv_cache}"
            found[name] = Option(name, declared, engine, 20.0 + 16 * declared.weights.bits, 20.0, 5.0)
    return found


def predicted(figure, options, name, known, estimated=None):
    mean, deviation = figure.predict(list(options.values()), known, estimated or {})
    at = list(options).index(name)
    return math.exp(mean[at]), float(deviation[at])


def test_what_is_known_is_predicted_as_it_is(options):
    nats, deviation = predicted(DIVERGENCE, options, "int4 sym g64, u8", {"int4 sym g64, u8": 0.123})
    assert nats == pytest.approx(0.123, rel=0.02)
    assert deviation <= 0.03


def test_a_cheap_relative_says_what_the_dear_one_serves_at(options):
    _, before = predicted(SPEED, options, "int4 sym g64 gptq, u8", {})
    speed, after = predicted(SPEED, options, "int4 sym g64 gptq, u8", {"int4 sym g64, u8": 240.0})
    assert speed == pytest.approx(240, rel=0.01)
    assert after < 0.1 < before


def test_a_new_model_moves_what_is_expected_of_all(options):
    expected, _ = predicted(DIVERGENCE, options, "int8 sym per channel, u8", {})
    robust, _ = predicted(DIVERGENCE, options, "int8 sym per channel, u8", {"int4 sym g64, u8": 0.03})
    assert robust < 0.7 * expected


def test_an_estimate_weighs_less_than_a_measurement(options):
    name = "int4 sym g64 gptq, u8"
    estimated, doubt = predicted(DIVERGENCE, options, name, {}, {name: 0.05})
    measured, certain = predicted(DIVERGENCE, options, name, {name: 0.05}, {name: 0.4})
    assert estimated == pytest.approx(0.05, rel=0.2)
    assert measured == pytest.approx(0.05, rel=0.02)
    assert certain < doubt <= ESTIMATE_NOISE


def test_nothing_known_is_the_expectation_with_all_of_its_doubt(options):
    mean, deviation = DIVERGENCE.predict(list(options.values()), {})
    expected = [DIVERGENCE.expected(each) for each in options.values()]
    np.testing.assert_allclose(mean, expected)
    np.testing.assert_allclose(deviation, math.hypot(DIVERGENCE.level, DIVERGENCE.spread))
