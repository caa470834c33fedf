"""ABBA order, raw figures, and linear drift cancelled by it."""

import math

import pytest

from configs.engine import EngineSettings, SchedulerSettings
from configs.schema import RequestSettings
from tasks.serving.interleaved import decode_runner, interleave, log_ratios, throughput_runner
from tasks.serving.requests import request_list
from tests.fixtures.clockwork_engine import ClockworkEngine

TEXT = list(range(2000))


def test_order_is_abba():
    seen = []

    def runner(name):
        return lambda slot: seen.append((name, slot)) or 1.0

    interleave(2, {name: runner(name) for name in "ABC"})
    assert "".join(name for name, _ in seen) == "ABCCBAABCCBA"
    assert [slot for _, slot in seen] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3


def test_linear_drift_cancels():
    clock = iter(range(1000))

    def runner(level):
        return lambda slot: level + next(clock)

    speeds = interleave(8, {"a": runner(100), "b": runner(150)}).tokens_per_s
    assert len(speeds["a"]) == len(speeds["b"]) == 16
    assert (sum(speeds["b"]) - sum(speeds["a"])) / 16 == pytest.approx(50)


def test_source_serves_the_list_once_and_the_others_in_every_slot():
    settings = RequestSettings(count=32, prompt_tokens=8, min_new_tokens=4, max_new_tokens=9)
    one, many = (
        ClockworkEngine(
            EngineSettings(engine="transformers", scheduler=SchedulerSettings(max_num_seqs=slots))
        )
        for slots in (1, 32)
    )
    runners = {
        "one": throughput_runner(one, settings, TEXT, 8),
        "many": throughput_runner(many, settings, TEXT, 8),
    }
    speeds = interleave(8, runners)
    requests = request_list(settings, TEXT)
    assert [len(call) for call in one.calls] == [2] * 16
    assert sorted(r.prompt for call in one.calls for r in call) == sorted(r.prompt for r in requests)
    assert many.calls == [requests] * 16
    assert set(speeds.tokens_per_s) == {"one", "many"}


def test_decode_slots_share_their_prompt_between_candidates():
    engines = [ClockworkEngine(EngineSettings(engine="transformers")) for _ in range(2)]
    interleave(
        2, {str(i): decode_runner(engine, RequestSettings(), TEXT, 2) for i, engine in enumerate(engines)}
    )
    assert engines[0].calls == engines[1].calls
    assert len({call[0].prompt for call in engines[0].calls}) == 4


@pytest.mark.parametrize(("blocks", "rate", "said"), [(0, 1.0, "at least 1"), (1, 0.0, "above 0")])
def test_figures_that_mean_nothing_are_refused(blocks, rate, said):
    with pytest.raises(ValueError, match=said):
        interleave(blocks, {"a": lambda slot: rate})


def test_log_ratios_are_paired_by_slot_and_drift_cancels_in_a_block():
    """The machine slows down by a factor e^0.1 with every measurement; the proposal is twice as fast."""
    clock = iter(range(100))
    seen = []

    def runner(name, speed):
        return lambda slot: seen.append(name) or speed * math.exp(-0.1 * next(clock))

    ratios = log_ratios(range(6, 10), runner("a", 5.0), runner("b", 10.0))
    assert "".join(seen) == "abbaabba"
    assert [sum(ratios[i : i + 2]) / 2 for i in (0, 2)] == pytest.approx([math.log(2)] * 2)
