"""The saturation search on servers whose limit is known."""

import math
import random

import pytest
from clockwork_stream import ClockworkStream, StillClock
from pydantic import TypeAdapter

from configs.load_profile import LoadSettings, SaturationSettings, SloSettings
from tasks.serving.energy import EnergyMeter
from tasks.serving.load_comparison import saturation_of, serve_in_turn
from tasks.serving.load_driver import LoadDriver
from tasks.serving.load_metrics import served_metrics
from tasks.serving.load_record import LoadPoint
from tasks.serving.saturation import find_saturation

SLO = SloSettings(ttft_ms=1000, itl_ms=100, attainment=0.9)


def point(scale: float, attained: float) -> LoadPoint:
    return LoadPoint(
        scale=scale, offered_requests_per_s=scale, attainment=attained, goodput_requests_per_s=scale * attained,
        throughput_tokens_per_s=scale, ttft_ms_p95=1.0, itl_ms_p95=1.0,
    )  # fmt: skip


@pytest.mark.parametrize("limit", [0.07, 0.9, 1.0, 3.3, 40.0])
def test_the_limit_lies_in_the_bracket_and_the_bracket_is_as_narrow_as_asked(limit):
    found = find_saturation(
        lambda scale: point(scale, 1.0 if scale <= limit else 0.2),
        SLO,
        SaturationSettings(tolerance=0.1, probes=20),
    )
    assert found.met_scale <= limit < found.missed_scale <= found.met_scale * 1.1
    assert "within 10%" in found.stopped
    assert [p.scale for p in found.points] == sorted(p.scale for p in found.points)


def test_it_stops_when_the_probes_are_spent():
    found = find_saturation(lambda scale: point(scale, 1.0), SLO, SaturationSettings(probes=4))
    assert (found.met_scale, found.missed_scale, len(found.points)) == (8, None, 4)
    assert "4 loads" in found.stopped
    never = find_saturation(lambda scale: point(scale, 0.0), SLO, SaturationSettings(probes=3))
    assert (never.met_scale, never.missed_scale) == (None, 0.25)


def test_noise_moves_the_limit_by_little():
    """Attainment falls from 1 to 0 over a factor of four around 4; single probes are noisy."""
    found = []
    for seed in range(200):
        noise = random.Random(seed)

        def measured(scale, noise=noise):
            return point(scale, min(1.0, max(0.0, 1.4 - 0.5 * math.log2(scale) / 2 + noise.gauss(0, 0.02))))

        found.append(find_saturation(measured, SLO, SaturationSettings(tolerance=0.1, probes=12)).met_scale)
    truth = 2 ** ((1.4 - 0.9) * 4)
    assert sorted(found)[100] == pytest.approx(truth, rel=0.12)
    assert max(abs(math.log(scale / truth)) for scale in found) < math.log(1.5)


def test_a_real_queue_saturates_where_arithmetic_says():
    """Two slots, one-token answers, a second a step: two requests a second at most."""
    load = TypeAdapter(LoadSettings).validate_python(
        {"kind": "poisson", "requests_per_s": 0.5, "requests": 200, "slo": {"ttft_ms": 5000, "itl_ms": 1},
         "min_new_tokens": 1, "max_new_tokens": 1, "saturation": {"tolerance": 0.2, "probes": 12}, "repeats": 2}
    )  # fmt: skip
    clock = StillClock()
    driver = LoadDriver(ClockworkStream(clock, step_s=lambda running: 1.0), clock, EnergyMeter([]))
    found = saturation_of(load, driver, list(range(1000)))
    assert 0.5 * found.met_scale == pytest.approx(2, rel=0.35)
    low, high = found.points[0], found.points[-1]
    assert low.attainment > 0.9 > high.attainment
    served = serve_in_turn(load, {"a": driver, "b": driver}, list(range(1000)))
    metrics = served_metrics(served["a"], "load")
    assert metrics["perf/load/saturation_scale"] == served["a"].saturation.met_scale
    assert metrics["perf/goodput_requests_per_s"] == served["a"].measures.goodput_requests_per_s.mean
    assert "cost/energy_j_per_token" not in metrics
