"""When a task is looked at, and how alpha is divided: fixed by the settings, before anything is scored.

The kind `planned` chooses. Each candidate plan has its first look at some share of the items, the others evenly after it, and
spends by one exponent of the power family. Of those that keep the wanted power for an equal candidate, the one with the fewest
expected items is taken; where none reaches it, the one with the most power. An early first look is often no use: of 60 items
too few can have changed, or stayed, for any answer.

What there is to win: for an equal candidate, a margin of 3 points, 3 % discordance, 5 % and 95 % power, 500 items at most, four
looks of O'Brien-Fleming type take 357 items on average and the planned ones 291. No test of these error rates takes fewer than
about 230 (Wald 1945, Annals of Mathematical Statistics 16, 117-186: the chances of a wrong answer over the divergence of the
nearest candidate at the margin).

Why the error rates hold: every plan of the grid spends exactly alpha over its own looks, whatever the data, so each of them
alone keeps the rates. The choice depends on the number of items, the margin, the levels and the *expected* discordance of the
config. It is made before a candidate is scored, from none of its answers, so nothing is selected by its outcome. A wrong
expectation costs items or power, never the error rate.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from configs.quality import SequentialSettings
from tasks.quality.power import plan_performance
from tasks.quality.sequential import LookPlan
from tasks.quality.spending import OBRIEN_FLEMING, Spending, spending_levels
from tasks.store.record import Record

EXPONENTS = (3.0, 2.0, 1.5, 1.0, 0.75, 0.5)
"""Of the power family, from the most power to the fewest items where an answer is clear."""

FIRST_SHARES = (0.15, 0.25, 0.35)
"""Of the items, at the first look."""

FEWEST_ITEMS = 50
"""No look at fewer, unless they are all: an interval of a handful of changes is no normal approximation any more."""


class Aim(Record):
    """What a plan is made for: settings alone, nothing that was measured.

    Attributes:
        margin: largest loss of accuracy allowed.
        discordance: expected share of items whose answer changes.
        power: wanted chance that an equal candidate passes this task.
        design_effect: expected variance of clustered over independent items.
    """

    margin: float
    discordance: float
    power: float
    design_effect: float = 1.0


@lru_cache(maxsize=256)
def plan_looks(total_items: int, alpha: float, settings: SequentialSettings, aim: Aim) -> LookPlan:
    """Divide a task's items into looks and alpha over them.

    Args:
        total_items: items that the task may draw: the configured number, or all it has where that is less.
        alpha: one-sided level of a PASS over all looks (the gate's alpha / tries).
        settings: kind, number of looks, futility.
        aim: what the kind `planned` chooses by.

    Raises:
        ValueError: no item, or alpha outside (0, 0.5).
    """
    if settings.kind != "planned":
        return _divided(total_items, alpha, settings, 1 / settings.looks, OBRIEN_FLEMING)
    found = [
        (plan, plan_performance(plan, aim.margin, aim.discordance, aim.design_effect))
        for plan in _candidates(total_items, alpha, settings)
    ]
    enough = [(plan, does) for plan, does in found if does.power >= aim.power]
    if enough:
        return min(enough, key=lambda each: each[1].expected)[0]
    return max(found, key=lambda each: each[1].power)[0]


def most_powerful(total_items: int, alpha: float, settings: SequentialSettings) -> LookPlan:
    """The plan that `planned` falls back on, about the one with the most power; of other kinds their only one."""
    if settings.kind == "planned":
        return next(_candidates(total_items, alpha, settings))
    return _divided(total_items, alpha, settings, 1 / settings.looks, OBRIEN_FLEMING)


def _candidates(total_items: int, alpha: float, settings: SequentialSettings) -> Iterator[LookPlan]:
    for exponent in EXPONENTS:
        for first in FIRST_SHARES:
            yield _divided(total_items, alpha, settings, first, Spending(exponent=exponent))


def _divided(
    total_items: int, alpha: float, settings: SequentialSettings, first: float, spending: Spending
) -> LookPlan:
    """Looks evenly spaced from a share `first` of the items to all of them."""
    if total_items < 1 or not 0 < alpha < 0.5:
        raise ValueError(f"total_items={total_items}, alpha={alpha}: at least one item, alpha in (0, 0.5)")
    earliest = max(total_items * first, min(FEWEST_ITEMS, total_items))
    looks = 1 if settings.kind == "none" else settings.looks
    spaced = np.linspace(earliest, total_items, looks) if looks > 1 else [total_items]
    items = tuple(sorted({round(float(count)) for count in spaced}))
    if settings.kind == "confidence-sequence":
        levels = (alpha,) * len(items)
    else:
        levels = spending_levels(tuple(count / total_items for count in items), alpha, spending)
    return LookPlan(
        kind=settings.kind,
        alpha=alpha,
        items=items,
        levels=levels,
        spending=spending,
        futility_power=None if settings.kind == "none" else settings.futility_power,
    )
