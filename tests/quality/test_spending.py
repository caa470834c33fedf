"""Spending functions and the walk behind them: published values, other integrations, simulated walks."""

import math

import numpy as np
import pytest
from scipy import stats

from tasks.quality.spending import OBRIEN_FLEMING, Spending, spending_levels
from tasks.quality.walk import crossing, futility_bound

SPENDINGS = (OBRIEN_FLEMING, Spending(exponent=0.5), Spending(exponent=1.0), Spending(exponent=3.0))


def even(looks):
    return tuple((look + 1) / looks for look in range(looks))


@pytest.mark.parametrize(
    ("alpha", "critical"),
    [
        # gsDesign 3.6, gsDesign(k, test.type = 1, alpha, sfu = sfLDOF)$upper$bound
        (0.025, (4.332634, 2.963131, 2.359044, 2.014090)),
        (0.05, (3.200102, 2.140815, 1.694812)),
        # Reboussin, DeMets, Kim & Lan (2000), Controlled Clinical Trials 21, 190-207
        (0.025, (4.8769, 3.3569, 2.6803, 2.2898, 2.0310)),
        (0.025, (2.9626, 1.9686)),
    ],
)
def test_levels_reproduce_published_critical_values(alpha, critical):
    found = stats.norm.isf(spending_levels(even(len(critical)), alpha))
    assert found == pytest.approx(critical, abs=5e-4)


def test_the_sample_size_inflation_is_the_published_one():
    """gsDesign: four looks at one-sided 2.5 % and 80 % power cost 1.0196 times the items of one look."""
    critical = stats.norm.isf(spending_levels(even(4), 0.025))
    drift = math.sqrt(1.019637) * (stats.norm.isf(0.025) + stats.norm.isf(0.2))
    assert sum(crossing(even(4), critical, drift, None).passed) == pytest.approx(0.8, abs=2e-4)


@pytest.mark.parametrize(
    ("looks", "exponent", "most", "expected"),
    [(3, 1, 1.117, 0.812), (10, 2, 1.081, 0.762), (2, 3, 1.010, 0.895)],
)
def test_the_power_family_needs_the_published_items(looks, exponent, most, expected):
    """Jennison & Turnbull (2000), table 7.2: items of one look, at 80 % power and one-sided 2.5 %."""
    critical = stats.norm.isf(spending_levels(even(looks), 0.025, Spending(exponent=exponent)))
    drift = math.sqrt(most) * (stats.norm.isf(0.025) + stats.norm.isf(0.2))
    passed = np.array(crossing(even(looks), critical, drift, None).passed)
    assert passed.sum() == pytest.approx(0.8, abs=3e-4)
    stops = np.append(passed[:-1], 1 - passed[:-1].sum())
    assert most * (stops * even(looks)).sum() == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5, 3.0])
def test_the_power_family_spends_what_it_says_by_another_integration(exponent):
    """Multivariate normal chances of scipy: nothing before a look, and the look's own part of alpha at it."""
    times, alpha = np.array([0.3, 0.6, 1.0]), 0.05
    critical = stats.norm.isf(spending_levels(tuple(times), alpha, Spending(exponent=exponent)))
    covariance = np.sqrt(np.minimum.outer(times, times) / np.maximum.outer(times, times))
    below = [
        float(
            stats.multivariate_normal(cov=covariance[:n, :n], abseps=1e-8, releps=1e-8, seed=0).cdf(
                critical[:n]
            )
        )
        for n in (1, 2, 3)
    ]
    assert 1 - np.array(below) == pytest.approx(alpha * times**exponent, abs=2e-6)


@pytest.mark.parametrize("fractions", [(1.0,), even(4), even(20), (0.1, 0.15, 0.8, 1.0)])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 18])
@pytest.mark.parametrize("spending", SPENDINGS)
def test_all_looks_together_spend_alpha(fractions, alpha, spending):
    levels = spending_levels(fractions, alpha, spending)
    assert sum(crossing(fractions, stats.norm.isf(levels), 0.0, None).passed) == pytest.approx(
        alpha, rel=1e-6
    )
    assert all(0 < level <= alpha for level in levels)
    if spending.exponent in (None, 3.0):
        assert levels[-1] == max(levels)
    if fractions == (1.0,):
        assert levels[0] == pytest.approx(alpha)


@pytest.mark.parametrize("spending", SPENDINGS[:2])
@pytest.mark.parametrize("drift", [0.0, 2.6])
def test_stopping_chances_are_those_of_simulated_walks(drift, spending):
    rng = np.random.default_rng(3)
    fractions, trials = even(4), 200_000
    critical = stats.norm.isf(spending_levels(fractions, 0.05, spending))
    found = crossing(fractions, critical, drift, 0.1)
    walks = (rng.normal(drift / 4, 0.5, (trials, 4))).cumsum(1)
    going = np.ones(trials, dtype=bool)
    for look, fraction in enumerate(fractions):
        above = going & (walks[:, look] > critical[look] * math.sqrt(fraction))
        bound = futility_bound(fraction, critical[-1], drift, 0.1) if fraction < 1 else -math.inf
        below = going & (walks[:, look] < bound)
        assert above.mean() == pytest.approx(found.passed[look], abs=0.004)
        assert below.mean() == pytest.approx(found.stopped[look], abs=0.004)
        going &= ~above & ~below
