"""Sequential plans: published critical values, simulated walks, and what the gate does at a look."""

import math

import numpy as np
import pytest
from scipy import stats

from configs.quality import Margins, SequentialSettings
from tasks.quality.gate import judge
from tasks.quality.sequential import (
    LookLevels,
    conditional_power,
    crossing,
    futility_bound,
    plan_looks,
    spending_levels,
)
from tests.quality.test_gate import answers, collect, text

ACCURACY = Margins(perplexity_fraction=None, kl_nats=None, accuracy=0.03)
PLAN = SequentialSettings()


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


@pytest.mark.parametrize("fractions", [(1.0,), even(4), even(20), (0.1, 0.15, 0.8, 1.0)])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 18])
def test_all_looks_together_spend_alpha(fractions, alpha):
    levels = spending_levels(fractions, alpha)
    assert sum(crossing(fractions, stats.norm.isf(levels), 0.0, None).passed) == pytest.approx(
        alpha, rel=1e-6
    )
    assert all(0 < level <= alpha for level in levels)
    assert levels[-1] == max(levels)
    if fractions == (1.0,):
        assert levels[0] == pytest.approx(alpha)


@pytest.mark.parametrize("drift", [0.0, 2.6])
def test_stopping_chances_are_those_of_simulated_walks(drift):
    rng = np.random.default_rng(3)
    fractions, trials = even(4), 200_000
    critical = stats.norm.isf(spending_levels(fractions, 0.05))
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


def test_conditional_power_against_walks_that_go_on():
    rng = np.random.default_rng(5)
    margin, loss, error, fraction, critical = 0.03, 0.012, 0.012, 0.5, 1.72
    walk = math.sqrt(fraction) * (margin - loss) / error
    drift = margin / (error * math.sqrt(fraction))
    ends = walk + rng.normal(drift * 0.5, math.sqrt(0.5), 200_000)
    power = conditional_power(loss, margin, error, fraction, critical)
    assert power == pytest.approx((ends > critical).mean(), abs=0.004)
    assert power < conditional_power(-0.01, margin, error, fraction, critical)
    # the bound is where the conditional power is the one asked for
    bound = futility_bound(fraction, critical, drift, 0.1)
    there = margin - bound * error / math.sqrt(fraction)
    assert conditional_power(there, margin, error, fraction, critical) == pytest.approx(0.1)


def test_a_plan_ends_with_all_items_and_short_tasks_have_fewer_looks():
    plan = plan_looks(2000, 0.05 / 3, PLAN)
    assert plan.items == (500, 1000, 1500, 2000)
    assert plan.levels == spending_levels(even(4), 0.05 / 3)
    assert plan_looks(3, 0.05, PLAN).items == (1, 2, 3)
    uneven = plan_looks(10, 0.05, PLAN)
    assert uneven.items == (2, 5, 8, 10)
    assert uneven.levels == spending_levels((0.2, 0.5, 0.8, 1.0), 0.05)
    one = plan_looks(600, 0.05, SequentialSettings(kind="none"))
    assert (one.items, one.levels, one.futility_power) == ((600,), pytest.approx((0.05,)), None)
    with pytest.raises(ValueError, match="total_items=0"):
        plan_looks(0, 0.05, PLAN)


def drawn(items, lost=0, gained=0, task="facts", clusters=None):
    reference, candidate = np.ones(items), np.ones(items)
    candidate[:lost] = 0
    reference[lost : lost + gained] = 0
    return answers(reference, task, clusters=clusters), answers(candidate, task, clusters=clusters)


def at(look, plan):
    return {"facts": LookLevels(plan=plan, look=look)}


def judged(look, lost, settings=PLAN, items=2000, clusters=None, alpha=0.05, **rest):
    plan = plan_looks(items, alpha, settings)
    reference, candidate = drawn(plan.items[look - 1], lost, clusters=clusters)
    return judge(collect(reference), collect(candidate), ACCURACY, alpha=alpha, looks=at(look, plan), **rest)


def test_each_look_is_judged_at_its_own_level():
    plan = plan_looks(2000, 0.05, PLAN)
    for look in (1, 2, 3, 4):
        (row,) = judged(look, 5).metrics
        assert row.alpha == plan.levels[look - 1]
        assert (row.look, row.looks, row.items) == (look, 4, plan.items[look - 1])


def test_a_good_candidate_stops_early_and_a_doubtful_one_draws_on():
    early = judged(2, 5)
    assert (early.verdict, early.settled, early.undecided) == ("PASS", True, ())
    doubt = judged(2, 20)
    assert (doubt.verdict, doubt.settled, doubt.undecided) == ("INCONCLUSIVE", False, ("facts",))
    bad = judged(1, 60)
    assert (bad.verdict, bad.settled) == ("FAIL", True)
    last = judged(4, 60)
    assert (last.verdict, last.settled, last.undecided) == ("INCONCLUSIVE", True, ())


def test_futility_stops_what_will_not_pass_unless_it_is_off():
    hopeless = judged(3, 55)
    assert (hopeless.verdict, hopeless.settled) == ("INCONCLUSIVE", True)
    on = judged(3, 55, SequentialSettings(futility_power=None))
    assert (on.verdict, on.settled, on.undecided) == ("INCONCLUSIVE", False, ("facts",))
    sequence = SequentialSettings(kind="confidence-sequence")
    assert judged(3, 52, sequence).settled
    assert not judged(3, 30, sequence).settled


def test_a_task_that_passed_stays_passed_while_another_draws_on():
    plan = plan_looks(2000, 0.05, PLAN)
    first, second = drawn(1000, 5, task="facts"), drawn(1500, 35, task="pairs")
    looks = {"facts": LookLevels(plan=plan, look=2), "pairs": LookLevels(plan=plan, look=3)}
    verdict = judge(
        collect(first[0] + second[0]), collect(first[1] + second[1]), ACCURACY, alpha=0.05, looks=looks
    )
    assert verdict.undecided == ("pairs",)
    assert {row.task: row.verdict for row in verdict.metrics} == {"facts": "PASS", "pairs": "INCONCLUSIVE"}
    third = drawn(2000, 35, task="pairs")
    looks["pairs"] = LookLevels(plan=plan, look=4)
    assert (
        judge(
            collect(first[0] + third[0]), collect(first[1] + third[1]), ACCURACY, alpha=0.05, looks=looks
        ).verdict
        == "PASS"
    )


def test_a_doubtful_text_ends_drawing_only_where_futility_is_on():
    rng = np.random.default_rng(0)
    change = rng.normal(0.018, 0.02, 64)
    reference, candidate = drawn(500, 3)
    margins = Margins(kl_nats=None)
    for settings, settled in ((PLAN, True), (SequentialSettings(futility_power=None), False)):
        plan = plan_looks(2000, 0.05, settings)
        verdict = judge(
            collect(text(np.full(64, 3.0)) + reference), collect(text(3 + change) + candidate), margins,
            alpha=0.05, looks=at(1, plan),
        )  # fmt: skip
        assert verdict.verdict == "INCONCLUSIVE"
        assert verdict.settled == settled


def test_too_few_clusters_are_no_error_before_the_last_look():
    clusters = np.arange(2000) % 25
    early = judged(1, 2, clusters=clusters)
    assert (early.verdict, early.settled, early.undecided, early.metrics) == (
        "INCONCLUSIVE",
        False,
        ("facts",),
        (),
    )
    last = judged(4, 2, clusters=clusters)
    assert last.verdict == "ERROR"
    assert "25 clusters" in last.reason


def test_samples_that_are_not_at_the_look_are_an_error():
    plan = plan_looks(2000, 0.05, PLAN)
    reference, candidate = (collect(rows) for rows in drawn(600))
    found = judge(reference, candidate, ACCURACY, alpha=0.05, looks=at(1, plan))
    assert found.verdict == "ERROR"
    assert "600 items were paired, look 1 of its plan has 500" in found.reason
    assert judge(reference, candidate, ACCURACY, alpha=0.05, looks=at(5, plan)).verdict == "ERROR"
    with pytest.raises(ValueError, match=r"plan spends 0\.05, the gate alpha / tries = 0\.025"):
        judge(reference, candidate, ACCURACY, alpha=0.05, tries=2, looks=at(1, plan))


def test_a_confidence_sequence_needs_independent_items():
    settings = SequentialSettings(kind="confidence-sequence")
    assert judged(4, 3, settings).verdict == "PASS"
    shared = judged(4, 3, settings, clusters=np.arange(2000) // 2)
    assert shared.verdict == "ERROR"
    assert "a confidence sequence needs independent ones; set quality.sequential.kind" in shared.reason
