"""Bookkeeping of speculation from per-token times: what rounds were played is what is counted."""

import random

import pytest

from tasks.batching.rounds import count_rounds, step_seconds
from tasks.batching.speculation import tokens_per_round
from tasks.engines.protocol import EngineError, Generation


def served(*steps: int, step_s: float = 0.1) -> Generation:
    """One request whose steps yielded so many tokens."""
    times = [(number + 1) * step_s for number, size in enumerate(steps) for _ in range(size)]
    return Generation((7,) * len(times), tuple(times))


def test_rounds_by_hand():
    found = count_rounds([served(1, 4, 1, 2), served(1, 3, 4)], block=3)
    assert (found.rounds, found.tokens) == (5, 14)
    assert found.accepted == 9  # 3 + 0 + 1 and 2 + 3
    assert (
        found.refusals == 2
    )  # the yields 1 and 3; the last rounds may have been cut, the 4 was accepted whole
    assert found.acceptance == pytest.approx(9 / 11)
    assert found.tokens_per_round == pytest.approx(14 / 5)


@pytest.mark.parametrize(("block", "acceptance"), [(1, 0.3), (4, 0.6), (8, 0.85)])
def test_acceptance_is_found_whatever_the_block_and_the_cut(block, acceptance):
    coin = random.Random(block)

    def request(new_tokens: int) -> Generation:
        steps, left = [1], new_tokens - 1
        while left:
            accepted = 0
            while accepted < block and coin.random() < acceptance:
                accepted += 1
            steps.append(min(accepted + 1, left))
            left -= steps[-1]
        return served(*steps)

    found = count_rounds([request(coin.randint(12, 40)) for _ in range(4000)], block)
    assert found.acceptance == pytest.approx(acceptance, abs=0.012)
    # Cut rounds are shorter than the closed form says: 5 % at 12 to 40 tokens and blocks of 8.
    assert found.tokens_per_round == pytest.approx(tokens_per_round(block, acceptance), rel=0.12)
    assert found.tokens_per_round < tokens_per_round(block, acceptance) * 1.01


def test_nothing_accepted_is_zero_and_never_a_division_by_zero():
    assert count_rounds([served(1, 1, 1, 1)], block=4).acceptance == 0
    assert count_rounds([served(1, 1)], block=4).acceptance == 0


def test_a_first_step_of_several_tokens_is_a_round_too():
    found = count_rounds([served(3, 2)], block=3)
    assert (found.rounds, found.tokens, found.accepted) == (2, 4, 2)


def test_rounds_that_cannot_be_are_errors():
    with pytest.raises(EngineError, match="5; 4 are the most"):
        count_rounds([served(1, 5)], block=3)
    with pytest.raises(EngineError, match="no rounds"):
        count_rounds([served(1)], block=3)


def test_step_time_is_that_of_the_engine_not_of_a_request():
    slow, quick = served(1, 1, 1, step_s=0.2), served(1, 2, 2, step_s=0.2)
    assert step_seconds([slow, quick]) == pytest.approx(0.2)
    late = Generation((7, 7), (0.9, 1.1))  # its prompt took 0.3 s of the step that ended at 0.9
    assert step_seconds([slow, late]) == pytest.approx(0.2)
    uneven = Generation((7,) * 4, (0.1, 0.2, 0.5, 0.5))  # a plain step and a round
    assert step_seconds([uneven]) == pytest.approx(0.2)
    with pytest.raises(EngineError, match="every step began a request"):
        step_seconds([served(3)])
