"""Sequential plans: what the gate does at a look."""

import math

import numpy as np
import pytest

from configs.quality import Margins, SequentialSettings
from tasks.quality.gate import judge
from tasks.quality.looks import Aim, plan_looks
from tasks.quality.sequential import LookLevels, conditional_power
from tasks.quality.walk import futility_bound
from tests.quality.test_gate import answers, collect, text

ACCURACY = Margins(perplexity_fraction=None, kl_nats=None, accuracy=0.03)
PLAN = SequentialSettings(kind="obrien-fleming", looks=4)
AIM = Aim(margin=0.03, discordance=0.05, power=0.8)


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


def drawn(items, lost=0, gained=0, task="facts", clusters=None):
    reference, candidate = np.ones(items), np.ones(items)
    candidate[:lost] = 0
    reference[lost : lost + gained] = 0
    return answers(reference, task, clusters=clusters), answers(candidate, task, clusters=clusters)


def at(look, plan):
    return {"facts": LookLevels(plan=plan, look=look)}


def judged(look, lost, settings=PLAN, items=2000, clusters=None, alpha=0.05, **rest):
    plan = plan_looks(items, alpha, settings, AIM)
    reference, candidate = drawn(plan.items[look - 1], lost, clusters=clusters)
    return judge(collect(reference), collect(candidate), ACCURACY, alpha=alpha, looks=at(look, plan), **rest)


def test_each_look_is_judged_at_its_own_level():
    plan = plan_looks(2000, 0.05, PLAN, AIM)
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
    on = judged(3, 55, PLAN.model_copy(update={"futility_power": None}))
    assert (on.verdict, on.settled, on.undecided) == ("INCONCLUSIVE", False, ("facts",))
    sequence = SequentialSettings(kind="confidence-sequence", looks=4)
    assert judged(3, 52, sequence).settled
    assert not judged(3, 30, sequence).settled


def test_a_task_that_passed_stays_passed_while_another_draws_on():
    plan = plan_looks(2000, 0.05, PLAN, AIM)
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
    for settings, settled in ((PLAN, True), (PLAN.model_copy(update={"futility_power": None}), False)):
        plan = plan_looks(2000, 0.05, settings, AIM)
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
    plan = plan_looks(2000, 0.05, PLAN, AIM)
    reference, candidate = (collect(rows) for rows in drawn(600))
    found = judge(reference, candidate, ACCURACY, alpha=0.05, looks=at(1, plan))
    assert found.verdict == "ERROR"
    assert "600 items were paired, look 1 of its plan has 500" in found.reason
    assert judge(reference, candidate, ACCURACY, alpha=0.05, looks=at(5, plan)).verdict == "ERROR"
    with pytest.raises(ValueError, match=r"plan spends 0\.05, the gate alpha / tries = 0\.025"):
        judge(reference, candidate, ACCURACY, alpha=0.05, tries=2, looks=at(1, plan))


def test_a_confidence_sequence_needs_independent_items():
    settings = SequentialSettings(kind="confidence-sequence", looks=4)
    assert judged(4, 3, settings).verdict == "PASS"
    shared = judged(4, 3, settings, clusters=np.arange(2000) // 2)
    assert shared.verdict == "ERROR"
    assert "a confidence sequence needs independent ones; set quality.sequential.kind" in shared.reason
