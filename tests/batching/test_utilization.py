"""Slots over time: the worked example of the seed document, a step-by-step simulation, and bad input."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.batching.utilization import continuous_utilization, static_utilization

LENGTHS = [120, 80, 40, 20, 60, 55, 40, 35]


def test_worked_example():
    static, continuous = static_utilization(LENGTHS, 4), continuous_utilization(LENGTHS, 4)
    assert (static.steps, static.utilization) == (180, pytest.approx(450 / 720))
    assert (continuous.steps, continuous.utilization) == (120, pytest.approx(450 / 480))
    assert static.finish_steps == (120, 80, 40, 20, 180, 175, 160, 155)
    assert continuous.finish_steps == (120, 80, 40, 20, 80, 95, 120, 115)


def simulated_steps(lengths: list[int], prefill: list[int], slots: int) -> int:
    """Step by step, as a scheduler would."""
    waiting = [before + tokens for before, tokens in zip(prefill, lengths, strict=True)]
    running, steps = [], 0
    while waiting or running:
        while waiting and len(running) < slots:
            running.append(waiting.pop(0))
        steps += 1
        running = [left - 1 for left in running if left > 1]
    return steps


requests = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 5)), min_size=1, max_size=20)


@given(requests, st.integers(1, 6))
def test_continuous_is_the_simulation_and_beats_static(drawn, slots):
    lengths, prefill = [length for length, _ in drawn], [before for _, before in drawn]
    continuous = continuous_utilization(lengths, slots, prefill)
    static = static_utilization(lengths, slots, prefill)
    assert continuous.steps == simulated_steps(lengths, prefill, slots)
    assert continuous.steps <= static.steps
    assert 0 < static.utilization <= continuous.utilization <= 1


def test_one_slot_leaves_nothing_to_gain():
    assert static_utilization(LENGTHS, 1).utilization == continuous_utilization(LENGTHS, 1).utilization == 1


@pytest.mark.parametrize(
    ("lengths", "slots", "prefill", "said"),
    [
        ([], 2, None, "new_tokens"),
        ([3, 0], 2, None, "new_tokens"),
        ([3], 0, None, "slots"),
        ([3], 1, [1, 1], "prefill"),
    ],
)
def test_impossible_lists_are_refused(lengths, slots, prefill, said):
    for model in (static_utilization, continuous_utilization):
        with pytest.raises(ValueError, match=said):
            model(lengths, slots, prefill)
