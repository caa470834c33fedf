"""Intervals against published examples, the reference library, brute force and seeded coverage."""

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import minimize_scalar
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.weightstats import DescrStatsW

from tasks.quality.intervals import (
    TooFewClusters,
    accuracy_interval,
    accuracy_limits,
    jackknife_ratio,
    lognormal_skewness,
    ratio_interval,
    text_interval,
    text_limits,
    unskewed,
)
from tasks.quality.paired_proportions import (
    score_limits,
    score_statistic,
    tango_limits,
    tango_statistic,
)

TRIALS = 4000


@pytest.mark.parametrize(
    ("lost", "gained", "items", "alpha", "low", "high"),
    [
        # Fagerland, Lydersen & Laake (2014), Statistics in Medicine 33, 2850, airway hyper-responsiveness
        (1, 7, 21, 0.025, -0.517, -0.026),
        # Tango (1998), the crossover trial of lens disinfection, 90 %
        (0, 1, 44, 0.05, -0.096, 0.037),
        # PropCIs 0.3-0, scoreci.mp(b = 40, c = 20, n = 160): the sign of the difference is c - b there
        (40, 20, 160, 0.025, 0.0309, 0.2181),
    ],
)
def test_tango_reproduces_published_intervals(lost, gained, items, alpha, low, high):
    limits = tango_limits(lost, gained, items, alpha)
    assert limits[0] == pytest.approx(low, abs=6e-4)
    assert limits[1] == pytest.approx(high, abs=6e-4)


def brute_force_statistic(lost, gained, items, loss):
    """Score test with the constrained likelihood maximised numerically instead of by the quadratic."""

    def minus_likelihood(gain):
        chances = np.array([gain + loss, gain, 1 - 2 * gain - loss])
        counts = np.array([lost, gained, items - lost - gained])
        return -np.sum(counts * np.log(np.maximum(chances, 1e-300)))

    lowest, highest = max(0.0, -loss), (1 - loss) / 2
    gain = minimize_scalar(
        minus_likelihood, bounds=(lowest, highest), method="bounded", options={"xatol": 1e-12}
    ).x
    return (lost - gained - items * loss) / np.sqrt(items * (2 * gain + loss * (1 - loss)))


@pytest.mark.parametrize(("lost", "gained", "items"), [(5, 3, 60), (12, 2, 50), (1, 7, 21), (30, 10, 600)])
def test_tango_limits_solve_the_score_equation_found_by_brute_force(lost, gained, items):
    low, high = tango_limits(lost, gained, items, 0.05)
    z = stats.norm.isf(0.05)
    assert brute_force_statistic(lost, gained, items, float(low)) == pytest.approx(z, abs=1e-4)
    assert brute_force_statistic(lost, gained, items, float(high)) == pytest.approx(-z, abs=1e-4)


def test_tango_without_a_changed_answer_has_its_closed_form():
    low, high = tango_limits(0, 0, 600, 0.05)
    z2 = stats.norm.isf(0.05) ** 2
    assert high == pytest.approx(z2 / (600 + z2))
    assert low == pytest.approx(-z2 / (600 + z2))


def test_tango_at_no_loss_is_mcnemar():
    table = [[400, 25], [11, 164]]
    chi2 = mcnemar(table, exact=False, correction=False).statistic
    assert tango_statistic(25, 11, 600, 0.0) ** 2 == pytest.approx(chi2)


counts = st.integers(1, 400).flatmap(
    lambda n: st.integers(0, n).flatmap(lambda b: st.tuples(st.just(b), st.integers(0, n - b), st.just(n)))
)


@given(counts, st.floats(0.001, 0.4))
def test_swapping_roles_mirrors_the_interval_and_it_holds_the_estimate(table, alpha):
    lost, gained, items = table
    low, high = tango_limits(lost, gained, items, alpha)
    mirrored = tango_limits(gained, lost, items, alpha)
    assert mirrored == (-high, -low)
    assert -1 <= low <= (lost - gained) / items <= high <= 1
    assert high > low


def test_the_corrected_statistic_solves_the_cornish_fisher_equation_with_brute_force_moments():
    lost, gained, items, loss = 30, 12, 600, 0.01
    plain = float(tango_statistic(lost, gained, items, loss))
    gain = (((lost - gained) / items - loss) / plain) ** 2 * items  # variance of one item, from the statistic
    gain = (gain + loss**2 - loss) / 2
    outcomes, chances = np.array([1, -1, 0]), np.array([gain + loss, gain, 1 - 2 * gain - loss])
    third, second = ((outcomes - loss) ** np.array([[3], [2]]) * chances).sum(1)
    a = third / second**1.5 / np.sqrt(items) / 6
    z = np.roots([a, 1, -(a + plain)])
    corrected = z[np.argmin(np.abs(z - plain))]
    found = float(score_statistic(lost, gained, items, loss))
    assert found == pytest.approx(min(plain, corrected, key=abs))
    assert found < plain


@given(counts, st.floats(0.001, 0.4))
def test_the_gates_limits_are_mirrored_and_never_inside_tangos(table, alpha):
    lost, gained, items = table
    z = stats.norm.isf(alpha)
    low, high = score_limits(lost, gained, items, z)
    assert score_limits(gained, lost, items, z) == (-high, -low)
    plain = tango_limits(lost, gained, items, alpha)
    assert low <= plain[0] + 1e-9
    assert high >= plain[1] - 1e-9


@pytest.mark.parametrize("items", [400, 1000])
@pytest.mark.parametrize("discordance", [0.05, 0.15])
@pytest.mark.parametrize("loss", [0.0, 0.03])
def test_the_score_interval_covers(items, discordance, loss):
    rng = np.random.default_rng(7)
    chances = [(discordance + loss) / 2, (discordance - loss) / 2, 1 - discordance]
    lost, gained, _ = rng.multinomial(items, chances, size=10_000).T
    low, high = score_limits(lost, gained, items, stats.norm.isf(0.025))
    assert ((low <= loss) & (loss <= high)).mean() >= 0.94


@pytest.mark.parametrize(
    ("items", "discordance", "loss"), [(600, 0.05, 0.03), (1000, 0.02, 0.01), (600, 0.035, 0.03)]
)
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 3, 0.05 / 18])
def test_the_exact_chance_that_the_lower_limit_lies_above_the_truth(items, discordance, loss, alpha):
    """Summed over the trinomial. Tango's own lower limit is what the correction is for."""
    lost, gained = np.arange(110)[:, None], np.arange(110)[None, :]
    chances = stats.binom.pmf(lost + gained, items, discordance) * stats.binom.pmf(
        lost, lost + gained, (discordance + loss) / (2 * discordance)
    )
    z = stats.norm.isf(alpha)
    corrected = chances[score_statistic(lost, gained, items, loss) > z].sum()
    plain = chances[tango_statistic(lost, gained, items, loss) > z].sum()
    assert corrected <= 1.07 * alpha
    assert plain > 1.04 * alpha
    assert corrected <= plain


@pytest.mark.parametrize("items", [400, 1260, 3133])
@pytest.mark.parametrize("loss", [0.02, 0.05])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 3])
def test_where_all_changes_are_losses_the_lower_limit_is_exact(items, loss, alpha):
    """The score test alone lies above its level for some of these counts."""
    z, lost = stats.norm.isf(alpha), np.arange(items + 1)
    chances = stats.binom.pmf(lost, items, loss)
    assert chances[score_statistic(lost, 0, items, loss) > z].sum() <= alpha
    assert chances[score_statistic(0, lost, items, -loss) < -z].sum() <= alpha
    seen = round(1.3 * items * loss)
    low, _ = score_limits(seen, 0, items, z)
    assert low == pytest.approx(
        min(stats.beta.ppf(alpha, seen, items - seen + 1), tango_limits(seen, 0, items, alpha)[0]), abs=1e-4
    )
    assert low < stats.beta.ppf(alpha, seen, items - seen + 1) + 1e-9
    assert float(score_statistic(1, 0, 40, 0.024)) >= 0  # as many as expected, or just more
    # One gain more, and the score test holds again: it says nearly the same.
    assert score_limits(seen, 1, items, z)[0] == pytest.approx(low, abs=0.2 / items**0.5)


def test_clusters_of_one_item_are_the_score_interval_and_clusters_widen_it():
    rng = np.random.default_rng(3)
    template_changes = rng.choice([-1, 0, 1], p=[0.02, 0.94, 0.04], size=100)
    losses = np.repeat(template_changes, 6)
    single = accuracy_interval(losses, np.arange(600), alpha=0.05)
    clustered = accuracy_interval(losses, np.repeat(np.arange(100), 6), alpha=0.05)
    low, high = score_limits((losses > 0).sum(), (losses < 0).sum(), 600, stats.norm.isf(0.05))
    assert (single.low, single.high) == (float(low), float(high))
    # items that always change together are worth their 100 templates, no more, and the few that changed are
    # all that the variance was seen on
    changed = np.count_nonzero(template_changes)
    quantile = stats.t.isf(0.05, changed - 1)
    low, high = score_limits((template_changes > 0).sum(), (template_changes < 0).sum(), 100, quantile)
    assert (clustered.low, clustered.high) == pytest.approx((float(low), float(high)), abs=2e-3)


def clustered_counts(rng, correlation, size, clusters, chances, trials):
    concentration = (1 - correlation) / correlation
    shares = rng.dirichlet(concentration * np.array(chances), size=(trials, clusters))
    counted = rng.multinomial(size, shares).astype(float)
    return counted[..., 0], counted[..., 1], np.full((trials, clusters), float(size))


@pytest.mark.parametrize("chances", [[0.04, 0.01, 0.95], [0.0299, 0.0001, 0.97]], ids=["both", "one way"])
@pytest.mark.parametrize(("clusters", "size"), [(60, 10), (200, 3)])
@pytest.mark.parametrize("correlation", [0.05, 0.15])
def test_a_clustered_loss_at_the_margin_is_accepted_at_most_alpha_often(clusters, size, chances, correlation):
    rng, most = np.random.default_rng(11), 0.055 + 2 * np.sqrt(0.05 * 0.95 / TRIALS)
    lost, gained, items = clustered_counts(rng, correlation, size, clusters, chances, TRIALS)
    low, high = accuracy_limits(lost, gained, items, 0.05)
    assert (high < 0.03).mean() <= most
    assert (low > 0.03).mean() <= most
    _, naive = tango_limits(lost.sum(-1), gained.sum(-1), items.sum(-1), 0.05)
    assert (naive < 0.03).mean() > (high < 0.03).mean()


def test_one_large_template_does_not_count_as_many_clusters():
    clusters = np.concatenate([np.zeros(500), np.arange(1, 101)])
    with pytest.raises(TooFewClusters, match="101 clusters are worth 1 equal"):
        accuracy_interval(np.zeros(600), clusters, alpha=0.05)


def test_jackknife_is_hc3_of_the_weighted_regression_and_a_t_interval_at_equal_weights():
    rng = np.random.default_rng(5)
    weights = rng.integers(40, 200, 80).astype(float)
    values = rng.normal(0.01, 0.05, 80) * weights
    ratio, error, _ = jackknife_ratio(values, weights)
    fit = sm.WLS(values / weights, np.ones(80), weights=weights).fit(cov_type="HC3")
    assert ratio == pytest.approx(fit.params[0])
    assert error == pytest.approx(fit.bse[0] * np.sqrt(79 / 80))

    even = np.concatenate([values, -values])  # no skewness to correct
    interval = text_interval(even, np.ones(160), np.arange(160), alpha=0.05)
    assert (interval.low, interval.high) == pytest.approx(DescrStatsW(even).tconfint_mean(0.1))


@given(st.integers(0, 2**32), st.floats(0.005, 0.2))
def test_swapping_roles_mirrors_the_interval_of_a_text(seed, alpha):
    rng = np.random.default_rng(seed)
    values, weights = rng.gamma(1, 1, 64) - 0.7, rng.integers(50, 300, 64).astype(float)
    low, high = text_limits(values, weights, alpha, skewed=False)
    mirrored = text_limits(-values, weights, alpha, skewed=False)
    assert (-mirrored[1], -mirrored[0]) == pytest.approx((low, high), abs=1e-15)
    ratio, error, _ = jackknife_ratio(values, weights)
    quantile = stats.t.isf(alpha, 63)
    assert low <= ratio - quantile * error + 1e-12
    assert high >= ratio + quantile * error - 1e-12


def test_lognormal_skewness_is_that_of_scipy():
    sigma = 0.6
    mean, variance, skewness = stats.lognorm.stats(sigma, moments="mvs")
    assert lognormal_skewness(np.sqrt(variance) / mean) == pytest.approx(float(skewness))


def test_text_sections_of_one_topic_are_one_cluster():
    rng = np.random.default_rng(5)
    values, weights = np.repeat(rng.normal(0, 1, 70), 4), np.full(280, 100.0)
    topics = np.repeat(np.arange(70), 4)
    together = text_interval(values, weights, topics, alpha=0.05)
    apart = text_interval(values, weights, np.arange(280), alpha=0.05)
    assert (together.high - together.low) / (apart.high - apart.low) == pytest.approx(2, rel=0.05)
    assert (together.n, together.clusters) == (280, 70)


def test_too_little_text_is_refused():
    with pytest.raises(TooFewClusters, match=r"59 independent sections; .* need 60"):
        text_interval(np.ones(120), np.ones(120), np.arange(120) % 59, alpha=0.05)


def test_a_divergence_of_rounding_noise_has_a_finite_interval():
    noise = np.random.default_rng(6).normal(-1e-9, 1e-8, 64)
    low, high = text_limits(noise, np.ones(64), 0.05, skewed=True)
    assert -1e-7 < low < noise.mean() < high < 1e-7
    low, high = text_limits(np.zeros(64), np.ones(64), 0.05, skewed=True)
    assert low == high == 0


def lognormal(rng, spread, shape):
    sigma = np.sqrt(np.log(1 + spread**2))
    return rng.lognormal(-(sigma**2) / 2, sigma, shape)


@pytest.mark.parametrize(
    ("draw", "skewed", "most"),
    [
        (lambda rng, shape: rng.normal(1, 1, shape), False, 0.055),
        (lambda rng, shape: 1 + rng.standard_t(3, shape), False, 0.055),
        (lambda rng, shape: rng.gamma(1 / 0.5**2, 0.5**2, shape), True, 0.055),
        (lambda rng, shape: rng.gamma(1 / 0.9**2, 0.9**2, shape), True, 0.055),
        (lambda rng, shape: lognormal(rng, 0.5, shape), True, 0.055),
        (lambda rng, shape: lognormal(rng, 0.9, shape), True, 0.055),
    ],
    ids=["normal", "heavy-tailed", "gamma 0.5", "gamma 0.9", "lognormal 0.5", "lognormal 0.9"],
)
def test_text_limits_hold_their_level_and_cover(draw, skewed, most):
    rng = np.random.default_rng(2)
    weights = rng.integers(60, 300, (20_000, 60)).astype(float)
    values = draw(rng, weights.shape) * weights
    low, high = text_limits(values, weights, 0.05, skewed=skewed)
    assert (high < 1).mean() <= most
    assert (low > 1).mean() <= most
    low, high = text_limits(values, weights, 0.025, skewed=skewed)
    assert ((low <= 1) & (high >= 1)).mean() >= 0.94


def test_skewness_correction_is_what_keeps_a_divergence_from_passing_too_often():
    rng = np.random.default_rng(2)
    values = lognormal(rng, 0.9, (20_000, 60))
    ratio, error, skewness = jackknife_ratio(values, np.ones_like(values))
    quantile = stats.t.isf(0.05, 59)
    hall = ratio - unskewed(-quantile, skewness / np.sqrt(60)) * error
    corrected = text_limits(values, np.ones_like(values), 0.05, skewed=True)[1]
    assert (ratio + quantile * error < 1).mean() > 0.09
    assert (hall < 1).mean() > 0.065
    assert (corrected < 1).mean() <= 0.055


def test_speed_interval_is_the_t_interval_of_the_log_ratios():
    ratios = np.log([1.9, 2.0, 2.1, 2.2, 1.8, 2.0, 2.1, 1.9])
    interval = ratio_interval(ratios, 0.95)
    assert (interval.low, interval.high) == pytest.approx(DescrStatsW(ratios).tconfint_mean(0.05))
    assert interval.level == pytest.approx(0.95)
    with pytest.raises(TooFewClusters, match="7 interleaved blocks; a speed ratio needs 8"):
        ratio_interval(ratios[:7])
    with pytest.raises(ValueError, match="block 2 is not finite"):
        ratio_interval([0.1, 0.1, float("nan"), *[0.1] * 6])
