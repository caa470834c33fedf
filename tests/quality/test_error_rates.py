"""How often the gate is wrong about a candidate whose truth is known, by seeded simulation.

The fast part of `make bench PART=simulate`, on the same code. Tolerances are two standard errors of the simulation
on top of what the gate claims.
"""

import math

import numpy as np
import pytest
from scipy import stats

from configs.quality import SequentialSettings
from tasks.quality.looks import plan_looks
from tasks.quality.paired_proportions import score_statistic, tango_limits
from tasks.quality.power import plan_performance
from tasks.quality.sequential import LookLevels
from tests.benchmarks import simulate
from tests.benchmarks.simulate_trials import (
    draw,
    judge_of_counts,
    one_look,
    several_looks,
    threshold,
    unpaired_margin,
    unpaired_z,
)

TRIALS, ALPHA, DISCORDANCE, MARGIN = 4000, 0.05, 0.05, 0.02


def noise(rate, trials=TRIALS):
    return 2 * math.sqrt(rate * (1 - rate) / trials)


@pytest.mark.parametrize("tasks", [1, 3])
def test_at_the_planned_size_both_error_rates_hold_and_the_naive_gates_do_not(tasks):
    rng = np.random.default_rng(20)
    items = simulate.planned_items(tasks, MARGIN)
    worse = draw(rng, items, DISCORDANCE, [MARGIN] + [0.0] * (tasks - 1), TRIALS)
    equal = draw(rng, items, DISCORDANCE, [0.0] * tasks, TRIALS)
    assert one_look(worse, MARGIN, ALPHA).passed.mean() <= ALPHA + noise(ALPHA)
    assert one_look(equal, MARGIN, ALPHA).passed.mean() >= 0.8 - noise(0.8)
    assert one_look(equal, MARGIN, ALPHA).failed.mean() <= ALPHA
    assert threshold(worse, MARGIN).mean() > 0.4
    assert unpaired_z(worse, ALPHA).mean() > 0.9
    assert unpaired_margin(equal, MARGIN, ALPHA).mean() < 0.1


@pytest.mark.parametrize("kind", simulate.KINDS)
@pytest.mark.parametrize("tasks", [1, 3])
def test_a_sequential_plan_keeps_both_error_rates_and_draws_what_was_planned(kind, tasks):
    rng = np.random.default_rng(21)
    trials = (
        TRIALS // 4 if kind == "confidence-sequence" else TRIALS
    )  # its limits take long, and its rates lie far off
    settings = SequentialSettings(kind=kind)
    items = simulate.planned_items(tasks, MARGIN, kind)
    plan = plan_looks(items, ALPHA, settings, simulate.aim(tasks, MARGIN))
    sizes = np.diff(plan.items, prepend=0)

    def ended(losses):
        return several_looks([draw(rng, int(n), DISCORDANCE, losses, trials) for n in sizes], plan, MARGIN)

    worse, equal = ended([MARGIN] + [0.0] * (tasks - 1)), ended([0.0] * tasks)
    assert worse.passed.mean() <= ALPHA + noise(ALPHA, trials)
    assert worse.failed.mean() <= ALPHA + noise(ALPHA, trials)
    assert equal.passed.mean() >= 0.8 - noise(0.8, trials)
    planned = plan_performance(plan, MARGIN, DISCORDANCE)
    assert equal.passed.mean() == pytest.approx(planned.power**tasks, abs=0.01 + noise(0.8, trials))
    if tasks == 1:
        assert equal.items.mean() / items == pytest.approx(planned.expected / items, abs=0.02)
    assert equal.items.mean() < 0.85 * items
    assert ended([2 * MARGIN] + [0.0] * (tasks - 1)).items.mean() < 0.6 * items
    if kind != "confidence-sequence":
        assert equal.items.mean() < 0.9 * simulate.planned_items(tasks, MARGIN)


def test_looking_four_times_at_the_full_level_is_what_the_plan_prevents():
    rng = np.random.default_rng(22)
    pieces = np.stack([draw(rng, 210, DISCORDANCE, [MARGIN], TRIALS) for _ in range(4)]).cumsum(0)
    peeking = np.any([one_look(counts, MARGIN, ALPHA).passed for counts in pieces], axis=0)
    assert peeking.mean() > 2 * ALPHA


def test_a_ladder_of_tries_keeps_the_total():
    rng = np.random.default_rng(23)
    tried = [draw(rng, 1200, DISCORDANCE, [MARGIN], TRIALS) for _ in range(3)]
    declared = np.any([one_look(counts, MARGIN, ALPHA / 3).passed for counts in tried], axis=0)
    undeclared = np.any([one_look(counts, MARGIN, ALPHA).passed for counts in tried], axis=0)
    assert declared.mean() <= ALPHA + noise(ALPHA)
    assert undeclared.mean() > 0.12


def test_judge_says_what_the_fast_functions_say():
    rng = np.random.default_rng(24)
    counts = draw(rng, 819, DISCORDANCE, [0.008, 0.0], 12)
    fast = one_look(counts, MARGIN, ALPHA)
    for trial, row in enumerate(counts):
        verdict = judge_of_counts(row, MARGIN, ALPHA).verdict
        assert (verdict == "PASS", verdict == "FAIL") == (fast.passed[trial], fast.failed[trial])
    plan = plan_looks(819, ALPHA, SequentialSettings(), simulate.aim(1, MARGIN))
    pieces = [draw(rng, int(n), DISCORDANCE, [0.012], 12) for n in np.diff(plan.items, prepend=0)]
    ended = several_looks(pieces, plan, MARGIN)
    for trial in range(12):
        sums = np.cumsum([piece[trial] for piece in pieces], axis=0)
        for look, row in enumerate(sums, start=1):
            verdict = judge_of_counts(row, MARGIN, ALPHA, {"t0": LookLevels(plan=plan, look=look)})
            if verdict.settled:
                break
        assert verdict.verdict == (
            "PASS" if ended.passed[trial] else "FAIL" if ended.failed[trial] else "INCONCLUSIVE"
        )
        assert plan.items[look - 1] == ended.items[trial]


def test_many_tasks_do_not_fail_a_candidate_that_sits_at_its_margins():
    rng = np.random.default_rng(21)
    tasks, trials, alpha = 20, 4000, 0.05
    lost, gained, _ = rng.multinomial(600, [0.065, 0.035, 0.9], size=(trials, tasks)).transpose(2, 0, 1)
    uncorrected = (tango_limits(lost, gained, 600, alpha)[0] > 0.03).any(-1).mean()
    corrected = (score_statistic(lost, gained, 600, 0.03) > stats.norm.isf(alpha / tasks)).any(-1).mean()
    assert uncorrected > 0.5
    assert corrected <= alpha + 0.005 + 2 * math.sqrt(alpha / trials)
