"""How often the gate is wrong about a candidate whose truth is known, by seeded simulation."""

import math

import numpy as np
import pytest

from tasks.quality.metric_test import metric_verdict
from tasks.quality.paired_proportions import tango_limits
from tasks.quality.pairing import PairedMetric

ITEMS = 600


def paired(correct, answered, clusters=None):
    size = len(correct)
    labels = np.arange(size) if clusters is None else clusters
    return PairedMetric("facts", "acc", correct, answered, np.ones(size), labels.astype(str))


def simulated(rng, discordance, loss, items=ITEMS):
    """One draw of two models' answers, the candidate truly worse by `loss`."""
    shares = [(discordance + loss) / 2, (discordance - loss) / 2, 0.65 * (1 - discordance)]
    kind = rng.choice(4, size=items, p=[*shares, 1 - sum(shares)])
    return paired(np.isin(kind, (0, 2)).astype(float), np.isin(kind, (1, 2)).astype(float))


@pytest.mark.parametrize("discordance", [0.05, 0.1])
def test_a_candidate_exactly_at_the_margin_is_accepted_at_most_alpha_often(discordance):
    rng = np.random.default_rng(20)
    trials, alpha = 2500, 0.05
    verdicts = [
        metric_verdict(simulated(rng, discordance, 0.03), 0.03, alpha, alpha).verdict for _ in range(trials)
    ]
    noise = 2 * math.sqrt(alpha * (1 - alpha) / trials)
    assert verdicts.count("PASS") / trials <= alpha + 0.005 + noise
    assert verdicts.count("FAIL") / trials <= alpha + 0.005 + noise


def test_many_tasks_do_not_fail_a_candidate_that_sits_at_its_margins():
    rng = np.random.default_rng(21)
    tasks, trials, alpha = 20, 4000, 0.05
    lost, gained, _ = rng.multinomial(ITEMS, [0.065, 0.035, 0.9], size=(trials, tasks)).transpose(2, 0, 1)
    uncorrected = (tango_limits(lost, gained, ITEMS, alpha)[0] > 0.03).any(-1).mean()
    corrected = (tango_limits(lost, gained, ITEMS, alpha / tasks)[0] > 0.03).any(-1).mean()
    assert uncorrected > 0.5
    assert corrected <= alpha + 0.005 + 2 * math.sqrt(alpha / trials)
