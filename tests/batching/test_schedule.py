"""Static against continuous batching on an engine that obeys the step model exactly."""

import pytest

from configs.engine import EngineSettings, SchedulerSettings
from configs.schema import RequestSettings
from tasks.batching.schedule import measure_schedule
from tasks.serving.requests import request_list
from tests.fixtures.clockwork_engine import ClockworkEngine

TEXT = list(range(1000))
REQUESTS = RequestSettings(count=24, prompt_tokens=8, min_new_tokens=2, max_new_tokens=60, repeats=2)


def engine(slots: int) -> ClockworkEngine:
    settings = EngineSettings(engine="openvino", scheduler=SchedulerSettings(max_num_seqs=slots))
    return ClockworkEngine(settings, step_s=0.01, prefill_s=0.01)


def test_model_foretells_the_gain_of_an_engine_that_obeys_it():
    schedule = measure_schedule(engine(4), REQUESTS, TEXT)
    assert schedule.measured_gain == pytest.approx(schedule.predicted_gain)
    assert schedule.gain_error == pytest.approx(0, abs=1e-9)
    assert schedule.measured_gain > 1.1
    lengths = [request.max_new_tokens for request in request_list(REQUESTS, TEXT)]
    static_s = sum(max(lengths[first : first + 4]) for first in range(0, 24, 4)) * 0.01
    assert schedule.static.throughput_tokens_per_s == pytest.approx(sum(lengths) / static_s)
    assert schedule.static.completion_ms.p99 > schedule.continuous.completion_ms.p99


def test_static_waits_for_the_whole_group():
    opened = engine(4)
    measure_schedule(opened, REQUESTS, TEXT)
    sizes = [len(call) for call in opened.calls]
    assert sizes == [2] + 2 * ([4] * 6 + [24])  # warm-up, then groups and the whole list in turn


def test_nothing_to_gain_when_all_fit_at_once():
    schedule = measure_schedule(engine(32), REQUESTS, TEXT)
    assert schedule.predicted_gain == 1
    assert schedule.measured_gain == pytest.approx(1)
