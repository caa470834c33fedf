"""The betting confidence sequence: capital computed by hand, brute force over all paths, seeded coverage at every item."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.quality.confidence_sequence import STAKES, critical_statistics, log_capital, sequence_limits
from tasks.quality.paired_proportions import tango_limits


def capital_item_by_item(differences, loss):
    """The definition: one bet after the other, the capital divided over the stakes at the start."""
    capitals = np.ones(STAKES.size)
    for difference in differences:
        capitals *= 1 + STAKES / (1 - loss) * (loss - difference)
    return capitals.mean()


@given(st.lists(st.sampled_from([-1, 0, 0, 0, 1]), min_size=1, max_size=60), st.floats(-0.5, 0.5))
def test_the_capital_is_that_of_betting_on_one_item_after_the_other_in_any_order(differences, loss):
    lost, gained = differences.count(1), differences.count(-1)
    found = math.exp(float(log_capital(lost, gained, len(differences), loss)))
    assert found == pytest.approx(capital_item_by_item(differences, loss), rel=1e-9)
    assert found == pytest.approx(capital_item_by_item(differences[::-1], loss), rel=1e-9)


@pytest.mark.parametrize("loss", [0.03, 0.0, 0.2])
def test_under_the_hypothesis_the_expected_capital_is_one(loss):
    """Summed over every path of six items."""
    chances = {1: (0.3 + loss) / 2, -1: (0.3 - loss) / 2, 0: 0.7}
    expected = sum(
        math.prod(chances[d] for d in path) * capital_item_by_item(path, loss)
        for path in itertools.product((-1, 0, 1), repeat=6)
    )
    assert expected == pytest.approx(1, abs=1e-12)


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 500), st.floats(0.001, 0.3))
def test_swapping_roles_mirrors_the_limits_and_they_hold_the_estimate(lost, gained, same, alpha):
    items = lost + gained + same + 1
    low, high = sequence_limits(lost, gained, items, alpha)
    assert sequence_limits(gained, lost, items, alpha) == (-high, -low)
    assert -1 <= low <= (lost - gained) / items <= high <= 1


def test_limits_are_where_the_capital_reaches_one_over_alpha():
    low, high = sequence_limits(20, 10, 600, 0.05)
    assert float(log_capital(20, 10, 600, high)) == pytest.approx(math.log(20), abs=1e-6)
    assert float(log_capital(10, 20, 600, -low)) == pytest.approx(math.log(20), abs=1e-6)
    plain = tango_limits(20, 10, 600, 0.05)
    assert low < plain[0] < plain[1] < high  # the price of looking whenever one likes


@pytest.mark.parametrize(("discordance", "loss"), [(0.05, 0.03), (0.1, 0.0), (0.2, -0.05)])
def test_watched_after_every_item_the_limits_are_wrong_at_most_alpha_often(discordance, loss):
    rng = np.random.default_rng(4)
    trials, items, alpha = 1500, 1200, 0.05
    chances = [(discordance + loss) / 2, (discordance - loss) / 2, 1 - discordance]
    drawn = rng.choice(3, p=chances, size=(trials, items))
    lost, gained = (drawn == 0).cumsum(1), (drawn == 1).cumsum(1)
    watched = np.arange(1, items + 1)
    for one, other, truth in ((lost, gained, loss), (gained, lost, -loss)):
        wrong = (log_capital(one, other, watched, truth) >= -math.log(alpha)).any(1).mean()
        assert wrong <= alpha


def test_planned_critical_values_are_those_of_the_limits():
    for items in (800, 5000):
        gap = float(critical_statistics(items, 0.02, 0.05, 0.05))
        net = 0.02 * items - gap * math.sqrt(0.05 * items)
        changed = 0.05 * items
        _, high = sequence_limits((changed + net) / 2, (changed - net) / 2, items, 0.05)
        assert float(high) == pytest.approx(0.02, abs=1e-6)
