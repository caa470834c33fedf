"""The plan of the looks: what it is made from, what it saves, and that its error rates hold for every truth."""

import numpy as np
import pytest

from configs.quality import Margins, QualitySettings, SequentialSettings
from tasks.quality.looks import EXPONENTS, FEWEST_ITEMS, FIRST_SHARES, Aim, most_powerful, plan_looks
from tasks.quality.planning import plan_items, plan_tasks
from tasks.quality.power import plan_performance
from tasks.quality.sequential import LookLevels
from tasks.quality.spending import OBRIEN_FLEMING, spending_levels
from tests.benchmarks.simulate_exact import exact_end
from tests.benchmarks.simulate_trials import draw, several_looks

PLANNED = SequentialSettings()
EVEN = SequentialSettings(kind="obrien-fleming", looks=4)
AIM = Aim(margin=0.03, discordance=0.03, power=0.9)
ACCURACY = Margins(perplexity_fraction=None, kl_nats=None, accuracy=0.03)


def test_looks_are_evenly_spaced_and_the_last_has_all_items():
    plan = plan_looks(2000, 0.05 / 3, EVEN, AIM)
    assert plan.items == (500, 1000, 1500, 2000)
    assert plan.levels == spending_levels((0.25, 0.5, 0.75, 1.0), 0.05 / 3)
    assert plan.spending == OBRIEN_FLEMING
    assert plan_looks(90, 0.05, EVEN, AIM).items == (50, 63, 77, 90)
    assert plan_looks(3, 0.05, PLANNED, AIM).items == (3,)
    one = plan_looks(600, 0.05, SequentialSettings(kind="none"), AIM)
    assert (one.items, one.levels, one.futility_power) == ((600,), pytest.approx((0.05,)), None)
    for settings in (EVEN, PLANNED):
        with pytest.raises(ValueError, match="total_items=0"):
            plan_looks(0, 0.05, settings, AIM)


@pytest.mark.parametrize(("total", "alpha"), [(200, 0.05), (500, 0.05), (600, 0.05 / 3), (2000, 0.05)])
def test_planned_is_one_of_the_declared_plans(total, alpha):
    plan = plan_looks(total, alpha, PLANNED, AIM)
    assert plan.spending.exponent in EXPONENTS
    assert plan.levels == spending_levels(plan.fractions, alpha, plan.spending)
    assert plan.items[0] in {max(FEWEST_ITEMS, round(total * share)) for share in FIRST_SHARES}
    assert plan.items[-1] == total
    # a FAIL spends by the same function
    passing, failing = LookLevels(plan=plan, look=1).levels(4)
    assert passing == plan.levels[0]
    assert failing == spending_levels(plan.fractions, alpha / 4, plan.spending)[0]


def test_planned_keeps_the_wanted_power_and_takes_fewer_items():
    """500 items, margin 3 points, 3 % discordant: the case that the kind was made for."""
    before = plan_performance(plan_looks(500, 0.05, EVEN, AIM), 0.03, 0.03)
    found = plan_performance(plan_looks(500, 0.05, PLANNED, AIM), 0.03, 0.03)
    assert found.power >= 0.9
    assert found.expected < 0.8 * before.expected
    wanted = [AIM.model_copy(update={"power": power}) for power in (0.8, 0.9, 0.95)]
    expected = [plan_performance(plan_looks(500, 0.05, PLANNED, aim), 0.03, 0.03).expected for aim in wanted]
    assert expected == sorted(expected)


def test_where_the_power_is_out_of_reach_planned_has_the_most():
    aim = AIM.model_copy(update={"discordance": 0.1})
    found = plan_performance(plan_looks(500, 0.05, PLANNED, aim), 0.03, 0.1).power
    assert found < 0.9
    even = plan_looks(500, 0.05, EVEN.model_copy(update={"looks": 8}), aim)
    assert found > plan_performance(even, 0.03, 0.1).power - 0.01
    assert found >= plan_performance(most_powerful(500, 0.05, PLANNED), 0.03, 0.1).power


@pytest.mark.parametrize("margin", [0.01, 0.02, 0.03])
@pytest.mark.parametrize("total", [150, 500, 1200])
def test_no_truth_at_the_margin_is_accepted_more_often_than_alpha(total, margin):
    """Exact, over the real decisions: whatever the discordance is in truth. Without futility, which only lowers the rates."""
    patient = PLANNED.model_copy(update={"futility_power": None})
    plan = plan_looks(total, 0.05, patient, AIM.model_copy(update={"power": 0.5, "margin": margin}))
    for discordance in (margin, 1.2 * margin, 0.05, 0.15):
        ended = exact_end(plan, margin, discordance, margin)
        assert ended.passed <= 0.05 + 0.0015
        assert ended.failed <= 0.05 + 0.005


def test_the_planners_items_and_power_are_those_of_simulated_and_of_exact_looks():
    rng = np.random.default_rng(4)
    plan = plan_looks(500, 0.05, PLANNED, AIM)
    planned = plan_performance(plan, 0.03, 0.03)
    pieces = [draw(rng, int(n), 0.03, [0.0], 4000) for n in np.diff(plan.items, prepend=0)]
    ended, exact = several_looks(pieces, plan, 0.03), exact_end(plan, 0.03, 0.03, 0.0)
    assert ended.items.mean() == pytest.approx(exact.items, rel=0.02)
    assert ended.passed.mean() == pytest.approx(exact.passed, abs=0.012)
    assert exact.items == pytest.approx(planned.expected, rel=0.02)
    assert exact.passed == pytest.approx(planned.power, abs=0.01)


def test_the_gate_and_the_preflight_plan_the_same_looks():
    """`keiryo plan` states what the gate's own plan of a task does; the text's share of the power is left to the tasks."""
    quality = QualitySettings(margins=Margins(), discordance=0.03, tries=1)
    sizes = {"a": 500, "b": 500, "c": 300}
    plans = plan_tasks(quality, quality.margins, sizes)
    assert {name: plan.items[-1] for name, plan in plans.items()} == sizes
    (*text, a, _) = plan_items(
        quality.margins, alpha=0.05, tries=1, power=0.8, discordance=0.03, tasks=("a", "b", "c")[:2], items=500,
        sections=64, sequential=quality.sequential,
    )  # fmt: skip
    pair = plan_tasks(quality, quality.margins, {"a": 500, "b": 500})
    stated = plan_performance(pair["a"], 0.03, 0.03)
    assert (a.power, a.expected) == (stated.power, stated.expected)
    assert a.power**2 * text[0].power * text[1].power >= 0.8
    assert plan_tasks(quality, quality.judged("tasks"), sizes)["a"].items[-1] == 500
    assert plan_tasks(quality, Margins(accuracy=None), sizes) == {}
    assert plan_looks(500, 0.05, PLANNED, AIM) == plan_looks(500, 0.05, PLANNED, AIM)
