"""The planner against known sample sizes, a simulation with the real test, and what it refuses."""

import numpy as np
import pytest
from scipy import stats

from configs.quality import Margins, QualitySettings, SequentialSettings
from tasks.quality.intervals import text_limits
from tasks.quality.looks import Aim, plan_looks
from tasks.quality.paired_proportions import tango_limits
from tasks.quality.planning import (
    PlanError,
    joint_power,
    plan_items,
    refuse_undecidable,
)
from tasks.quality.power import accuracy_power, divergence_power, plan_performance, text_power

AIM = Aim(margin=0.02, discordance=0.05, power=0.8)
ACCURACY = {"alpha": 0.05, "tries": 1, "power": 0.8, "discordance": 0.05, "items": 600, "sections": 64}


def accuracy_margin(points):
    return Margins(perplexity_fraction=None, kl_nats=None, accuracy=points)


@pytest.mark.parametrize(
    ("tasks", "points", "known"), [(1, 0.01, 3170), (1, 0.02, 820), (3, 0.01, 4850), (3, 0.02, 1250)]
)
def test_sizes_agree_with_the_simulated_ones_of_the_design(tasks, points, known):
    plans = plan_items(accuracy_margin(points), **ACCURACY, tasks=[f"t{i}" for i in range(tasks)])
    assert plans[0].needed_jointly == pytest.approx(known, rel=0.015)


@pytest.mark.parametrize("loss", [0.0, 0.03])
def test_exact_power_is_what_a_simulation_of_the_interval_gives(loss):
    rng = np.random.default_rng(0)
    lost, gained, _ = rng.multinomial(600, [(0.05 + loss) / 2, (0.05 - loss) / 2, 0.95], size=20_000).T
    simulated = (tango_limits(lost, gained, 600, 0.05)[1] < 0.03).mean()
    assert accuracy_power(600, 0.03, 0.05, 0.05, loss=loss) == pytest.approx(simulated, abs=0.008)


@pytest.mark.parametrize("items", [400, 600, 1250, 3170])
@pytest.mark.parametrize("discordance", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 3])
def test_the_exact_size_at_the_margin_is_at_most_alpha_and_half_a_point(items, discordance, alpha):
    for margin in (0.01, 0.02, 0.03):
        assert accuracy_power(items, margin, discordance, alpha, loss=margin) <= alpha + 0.005


def test_power_of_a_text_metric_is_that_of_a_t_test():
    rng = np.random.default_rng(1)
    sections = rng.normal(0, 1, (20_000, 64))
    high = sections.mean(-1) + stats.t.isf(0.05, 63) * stats.sem(sections, axis=-1)
    assert text_power(64, 0.35, 0.05).power == pytest.approx((high < 0.35).mean(), abs=0.01)


def test_shipped_settings_can_decide_and_show_what_they_lack():
    quality = QualitySettings()
    plans = plan_items(
        quality.margins,
        alpha=quality.alpha,
        tries=quality.tries,
        power=quality.power,
        discordance=quality.discordance,
        tasks=quality.tasks.names,
        items=quality.tasks.items,
        sections=quality.text.gate_sections,
    )
    refuse_undecidable(plans)
    assert {plan.alpha for plan in plans} == {quality.alpha / quality.tries}
    for plan in (plan for plan in plans if plan.metric == "accuracy"):
        assert plan.needed < plan.needed_jointly
        enough = accuracy_power(plan.chosen, plan.smallest_margin, quality.discordance, plan.alpha)
        assert enough == pytest.approx(quality.power ** (1 / len(plans)), abs=0.01)


def performance(items, settings):
    return plan_performance(plan_looks(items, 0.05, settings, AIM), 0.02, 0.05)


@pytest.mark.parametrize("kind", ["planned", "obrien-fleming", "confidence-sequence"])
def test_a_sequential_plan_states_the_items_it_expects(kind):
    settings = SequentialSettings(kind=kind)
    once = plan_items(accuracy_margin(0.02), **ACCURACY, tasks=["a", "b"])[0]
    plan = plan_items(
        accuracy_margin(0.02), **{**ACCURACY, "items": 1300}, tasks=["a", "b"], sequential=settings
    )[0]
    assert once.expected == once.chosen == 600
    assert plan.expected < 0.9 * plan.chosen
    assert plan.needed > once.needed
    assert plan.needed < (2.4 if kind == "confidence-sequence" else 1.08) * once.needed
    assert plan.needed_jointly > plan.needed
    assert plan.smallest_margin > 0
    # what is planned for the wanted power has it, and without futility a little more
    at_needed = performance(plan.needed, settings)
    assert at_needed.power == pytest.approx(0.8, abs=0.01)
    patient = settings.model_copy(update={"futility_power": None})
    drawn_on = performance(plan.needed, patient)
    assert at_needed.power < drawn_on.power < at_needed.power + 0.05
    assert at_needed.expected < drawn_on.expected


def test_one_look_of_a_sequential_plan_is_the_exact_test():
    single = SequentialSettings(looks=1)
    found = performance(819, single)
    assert found.power == pytest.approx(accuracy_power(819, 0.02, 0.05, 0.05), abs=1e-6)
    assert found.expected == pytest.approx(819)


def test_the_power_of_a_divergence_is_that_of_other_draws_of_its_sections():
    rng = np.random.default_rng(3)
    sigma = np.sqrt(np.log1p(0.7**2))
    values = 0.01 * rng.lognormal(-(sigma**2) / 2, sigma, (10_000, 64))
    simulated = (text_limits(values, np.ones_like(values), 0.05 / 3, skewed=True)[1] < 0.02).mean()
    settings = {**ACCURACY, "tries": 3}
    (plan,) = plan_items(Margins(perplexity_fraction=None, accuracy=None), **settings, tasks=[])
    assert plan.power == pytest.approx(simulated, abs=0.02)
    assert divergence_power(120, 0.7, 0.05 / 3).power > plan.power
    assert divergence_power(59, 0.7, 0.05).power == 0


def test_clusters_and_tries_cost_items():
    base = plan_items(accuracy_margin(0.02), **ACCURACY, tasks=["t"])[0]
    clustered = plan_items(accuracy_margin(0.02), **ACCURACY, tasks=["t"], design_effect=2.0)[0]
    tried = plan_items(accuracy_margin(0.02), **{**ACCURACY, "tries": 3}, tasks=["t"])[0]
    assert clustered.needed == pytest.approx(2 * base.needed, rel=0.01)
    assert tried.needed > 1.2 * base.needed
    assert tried.power < base.power


def test_a_limit_that_cannot_decide_is_refused_in_one_line_with_the_way_out():
    plans = plan_items(accuracy_margin(0.01), **ACCURACY, tasks=["facts"])
    assert joint_power(plans) < 0.5
    with pytest.raises(
        PlanError, match=r"accuracy of facts: 600 items cannot decide a margin of 0\.01"
    ) as caught:
        refuse_undecidable(plans)
    message = str(caught.value)
    assert "\n" not in message
    assert f"allow {plans[0].needed_jointly} items, or a margin of {plans[0].smallest_margin:.3g}" in message
    with pytest.raises(PlanError, match="no margin is set"):
        refuse_undecidable(())
