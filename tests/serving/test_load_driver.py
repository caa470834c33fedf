"""The driver on an engine whose steps take a known time, and every measure against arithmetic."""

import pytest
from clockwork_stream import ClockworkStream, StillClock

from configs.load_profile import SloSettings
from tasks.engines.protocol import EngineError, GenerationRequest
from tasks.serving.energy import EnergyMeter
from tasks.serving.load_driver import LoadDriver
from tasks.serving.load_measures import spread_of, summarize_runs
from tasks.serving.workload import Workload

LOOSE = SloSettings(ttft_ms=1e6, itl_ms=1e6)


def requests(*lengths: int, prompt: int = 3) -> tuple[GenerationRequest, ...]:
    return tuple(GenerationRequest((1,) * prompt, new, ignore_eos=True) for new in lengths)


def served(workload: Workload, **engine: object):
    clock = StillClock()
    stream = ClockworkStream(clock, **engine)
    return LoadDriver(stream, clock, EnergyMeter([])).run(workload)


def test_a_late_server_does_not_slow_the_arrivals_down():
    """One slot, steps of a second, arrivals every half second: each waits longer than the one before."""
    run = served(Workload(requests(1, 1, 1, 1), (0, 0.5, 1, 1.5)), slots=1, step_s=lambda running: 1.0)
    assert [each.arrived_s for each in run.requests] == [0, 0.5, 1, 1.5]
    assert [each.queue_s for each in run.requests] == pytest.approx([0, 0.5, 1, 1.5])
    assert [each.ttft_s for each in run.requests] == pytest.approx([1, 1.5, 2, 2.5])
    assert run.seconds == pytest.approx(4)


def test_nobody_is_let_in_before_he_has_come():
    run = served(Workload(requests(2, 2), (0, 5.0)), step_s=lambda running: 0.5)
    assert [each.admitted_s for each in run.requests] == pytest.approx([0, 5])
    assert run.requests[1].token_times_s == pytest.approx((5.5, 6))
    assert run.requests[1].gaps_s == pytest.approx((0.5,))
    assert run.requests[1].end_to_end_s == pytest.approx(1)
    measures = summarize_runs([run], LOOSE)
    assert measures.slot_utilization.mean == pytest.approx(2 * 1 / (6 * 2))  # two seconds of one slot of two
    points = measures.timeline
    assert sum(point.utilization for point in points) / len(points) == pytest.approx(
        measures.slot_utilization.mean
    )


def test_a_closed_loop_asks_when_it_has_its_answer():
    run = served(Workload(requests(2, 3, 1, 1), None, clients=2), slots=4, step_s=lambda running: 1.0)
    assert [each.arrived_s for each in run.requests] == pytest.approx([0, 0, 2, 3])
    assert max(step.running for step in run.steps) == 2
    assert all(each.queue_s == 0 for each in run.requests)


def test_goodput_counts_what_meets_both_limits():
    """Queue 0, 1, 2 s and a first token a second later; the third is late, the second too slow if gaps may take less."""
    run = served(Workload(requests(1, 3, 1), (0, 0, 0)), slots=1, step_s=lambda running: 1.0)
    assert [each.ttft_s for each in run.requests] == pytest.approx([1, 2, 5])
    for slo, good in (
        (LOOSE, 3),
        (SloSettings(ttft_ms=2500, itl_ms=1100), 2),
        (SloSettings(ttft_ms=2500, itl_ms=900), 1),
    ):
        measures = summarize_runs([run], slo)
        assert measures.slo_attainment.mean == pytest.approx(good / 3)
        assert measures.goodput_requests_per_s.mean == pytest.approx(good / 5)
    assert measures.throughput_tokens_per_s.mean == pytest.approx(1)
    assert measures.queue_ms.p50.mean == pytest.approx(1000)


def test_cache_use_against_counting_by_hand():
    """Prompts of 30: the first step ends with 31 tokens each (a block), the third with 33 (two blocks)."""
    run = served(Workload(requests(3, 3, prompt=30), (0, 0)), step_s=lambda running: 1.0)
    cache = summarize_runs([run], LOOSE).cache
    assert cache.peak_tokens == 66
    assert cache.mean_tokens == pytest.approx(64)
    assert cache.wasted_fraction_paged == pytest.approx(1 - 2 * (31 + 32 + 33) / (2 * (32 + 32 + 64)))
    assert cache.wasted_fraction_contiguous == pytest.approx(1 - (31 + 32 + 33) / 99)


def test_cost_and_intervals():
    workload = Workload(requests(4), (0.0,))
    runs = [served(workload, step_s=lambda running, s=s: s) for s in (1.0, 2.0)]
    measures = summarize_runs(runs, LOOSE, price_per_hour=7.2)
    assert measures.cost_per_million_tokens.runs == pytest.approx(
        (2000, 4000)
    )  # 0.002 a second, a token in 1 and 2 s
    assert measures.energy_j_per_token is None  # no counter: unknown, not nothing
    assert measures.ttft_ms.p95.mean == pytest.approx(1500)
    assert measures.ttft_ms.p95.ci_low < 1000 < 2000 < measures.ttft_ms.p95.ci_high
    assert spread_of([1.0]).ci_low is None


def test_an_engine_that_gives_up_is_an_error_not_a_short_answer():
    with pytest.raises(EngineError, match=r"raise scheduler\.cache_mib"):
        served(Workload(requests(2), (0.0,)), end="rejected")


def test_one_driver_serves_run_after_run():
    clock = StillClock()
    stream = ClockworkStream(clock)
    driver = LoadDriver(stream, clock, EnergyMeter([]))
    workload = Workload(requests(2, 1), (0.0, 0.1))
    assert driver.run(workload).requests[1].token_times_s == pytest.approx(
        driver.run(workload).requests[1].token_times_s
    )


def test_a_run_that_failed_leaves_nothing_to_the_next_one():
    """Two requests fail together: the first ends the run, the second must not be told to the run after it."""
    clock = StillClock()
    stream = ClockworkStream(clock, end="stop")
    driver = LoadDriver(stream, clock, EnergyMeter([]))
    with pytest.raises(EngineError, match="as 'stop' after 1"):
        driver.run(Workload(requests(1, 5), (0.0, 0.0)))
    assert not stream.busy
    stream.end = "length"
    assert len(driver.run(Workload(requests(2), (0.0,))).requests) == 1
