"""Speculative decoding: the closed form against play, and the rule of thumb that it replaces."""

import random

import pytest

from tasks.batching.speculation import best_block, costs_of_lengths, speculate, tokens_per_round


def test_ends_of_the_closed_form():
    assert tokens_per_round(4, 0.0) == 1  # the target's own token is always kept
    assert tokens_per_round(4, 1.0) == 5
    assert tokens_per_round(4, 0.8) == pytest.approx((1 - 0.8**5) / (1 - 0.8))


@pytest.mark.parametrize(("block", "acceptance"), [(2, 0.4), (4, 0.6), (8, 0.8)])
def test_closed_form_is_what_rounds_yield(block, acceptance):
    coin = random.Random(block)

    def one_round() -> int:
        for accepted in range(block):
            if coin.random() >= acceptance:
                return accepted + 1
        return block + 1

    rounds = 100_000
    mean = sum(one_round() for _ in range(rounds)) / rounds
    assert mean == pytest.approx(tokens_per_round(block, acceptance), abs=0.03)


def test_rule_of_thumb_is_wrong_at_both_ends():
    long = speculate(8, 0.8, 0.25)
    assert long.naive_tokens_per_round == pytest.approx(6.4)
    assert long.tokens_per_round == pytest.approx(4.33, abs=0.01)
    assert long.naive_speedup == pytest.approx(6.4 / 3)  # promises 2.1 times the speed
    assert long.speedup == pytest.approx(1.44, abs=0.01)
    short = speculate(2, 0.4, 0.25)
    assert short.naive_speedup < 1 < short.speedup


def test_best_block_is_the_best_and_says_whether_it_pays():
    best = best_block(0.8, 0.1)
    assert best.speedup == max(speculate(block, 0.8, 0.1).speedup for block in range(1, 17))
    assert best.pays
    assert not best_block(0.2, 0.25).pays  # a draft token costs more than it brings: a < c
    assert (
        best_block(0.6, 0.1, round_cost=1).block > best_block(0.6, 0.1).block
    )  # a dear round asks for long blocks


def test_two_lengths_tell_a_round_from_its_tokens():
    assert costs_of_lengths((1, 0.5), (4, 0.8)) == pytest.approx((0.1, 0.4))
    assert costs_of_lengths((1, 0.1), (4, 0.4)) == pytest.approx((0.1, 0.0))
    assert costs_of_lengths((1, 0.3), (4, 0.2)) == pytest.approx(
        (0.0, 0.3)
    )  # noise: nothing is cheaper than nothing
    assert costs_of_lengths((1, -0.1), (4, -0.2)) == (0.0, 0.0)
    with pytest.raises(ValueError, match="has to be longer"):
        costs_of_lengths((4, 0.3), (4, 0.2))


@pytest.mark.parametrize(("block", "acceptance", "cost"), [(0, 0.5, 0.1), (2, 1.1, 0.1), (2, 0.5, -1.0)])
def test_impossible_figures_are_refused(block, acceptance, cost):
    with pytest.raises(ValueError, match=r"must"):
        speculate(block, acceptance, cost)
