"""What a test of the gate does with a candidate whose truth is known: its power, and the samples it takes.

Accuracy: the trinomial summed over every outcome: exact for independent items, neither simulated nor a
normal approximation. A sequential plan's power and expected items come from the walk that its levels were
computed with, its critical values set so that each look alone has the exact power. Perplexity: the noncentral
t distribution of the section means, with the spread given; KL: a seeded simulation.
"""

import math
from functools import lru_cache

import numpy as np
from scipy import stats

from tasks.quality.confidence_sequence import critical_statistics
from tasks.quality.intervals import MIN_TEXT_CLUSTERS, text_limits
from tasks.quality.paired_proportions import score_statistic
from tasks.quality.sequential import LookPlan
from tasks.quality.walk import crossing
from tasks.store.record import Record

SIMULATED_CANDIDATES, SIMULATED_SECTIONS = 2000, 4000
"""Draws that a power of KL is simulated with, and sections beyond which it would not change any more."""


class Performance(Record):
    """What a test does with a candidate that is truly equal.

    Attributes:
        power: chance of a PASS.
        expected: samples judged until it stops, on average.
    """

    power: float
    expected: float


def accuracy_power(
    items: int, margin: float, discordance: float, alpha: float, design_effect: float = 1.0, loss: float = 0.0
) -> float:
    """Exact chance that the gate's score test passes a candidate whose true loss of accuracy is `loss`.

    Sums the trinomial of (lost, gained, unchanged) over all outcomes within 8 standard deviations; a design
    effect shrinks the number of items first. With `loss` equal to `margin` this is the size of the test.
    """
    n = max(1, round(items / design_effect))
    share_lost = (discordance + loss) / (2 * discordance)
    spread = 8 * math.sqrt(n * discordance) + 10
    changed = np.arange(max(0, int(n * discordance - spread)), min(n, int(n * discordance + spread)) + 1)
    half = int(4 * math.sqrt(changed[-1])) + 10
    lost = np.floor(changed * share_lost)[:, None] + np.arange(-half, half + 1)[None, :]
    gained = changed[:, None] - lost
    possible = (lost >= 0) & (gained >= 0)
    passed = score_statistic(lost.clip(0), gained.clip(0), n, margin) < -stats.norm.isf(alpha)
    chance = stats.binom.pmf(changed, n, discordance)[:, None] * stats.binom.pmf(
        lost, changed[:, None], share_lost
    )
    return float(chance[possible & passed].sum())


def plan_performance(
    plan: LookPlan, margin: float, discordance: float, design_effect: float = 1.0
) -> Performance:
    """Power and expected items of a plan, for an equal candidate."""
    items, fractions = plan.items[-1], plan.fractions
    if plan.kind == "none":
        power = accuracy_power(items, margin, discordance, plan.alpha, design_effect)
        return Performance(power=power, expected=items)
    drift = margin * math.sqrt(items / design_effect / discordance)
    if plan.kind == "confidence-sequence":
        independent = np.divide(plan.items, design_effect)
        critical = critical_statistics(independent, margin, discordance, plan.alpha)
    else:
        chances = [
            accuracy_power(count, margin, discordance, level, design_effect)
            for count, level in zip(plan.items, plan.levels, strict=True)
        ]
        critical = drift * np.sqrt(fractions) - stats.norm.ppf(np.clip(chances, 1e-12, 1 - 1e-12))
    found = crossing(fractions, critical.tolist(), drift, plan.futility_power)
    ended = np.add(found.passed, found.stopped)
    ended[-1] = 1 - ended[:-1].sum()
    return Performance(power=sum(found.passed), expected=float((ended * plan.items).sum()))


def text_power(sections: int, gap_in_spreads: float, alpha: float) -> Performance:
    """One look at a t limit that should lie below a margin `gap_in_spreads` deviations off the truth."""
    if sections < MIN_TEXT_CLUSTERS:
        return Performance(power=0.0, expected=sections)
    quantile = stats.t.isf(alpha, sections - 1)
    chance = stats.nct.sf(quantile, sections - 1, gap_in_spreads * math.sqrt(sections))
    return Performance(power=float(chance), expected=sections)


@lru_cache(maxsize=256)
def divergence_power(sections: int, spread: float, alpha: float) -> Performance:
    """One look at the KL of a candidate at half its margin, by seeded simulation with the gate's own limit.

    Sections are lognormal. What the limit allows for a skewness that it has to estimate has no closed form.

    Args:
        sections: sections of text.
        spread: standard deviation between sections over their mean.
        alpha: one-sided level.
    """
    if sections < MIN_TEXT_CLUSTERS:
        return Performance(power=0.0, expected=sections)
    rng, sigma = np.random.default_rng(0), math.sqrt(math.log1p(spread**2))
    shape = (SIMULATED_CANDIDATES, min(sections, SIMULATED_SECTIONS))
    nats = rng.lognormal(-(sigma**2) / 2, sigma, shape)
    _, high = text_limits(nats, np.ones_like(nats), alpha, skewed=True)
    return Performance(power=float((high < 2.0).mean()), expected=sections)
