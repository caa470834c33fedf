"""Group-sequential plans: how often a task may be judged while its items are drawn, and at which levels.

The looks are cumulative prefixes of one seeded permutation of a task's items; what each may spend of alpha is in
`spending.py`. Futility is non-binding: the levels do not count on it, so drawing on costs no error.

The gate's interval at a look's level is a repeated confidence interval (Jennison & Turnbull 1989, Journal of the Royal
Statistical Society B 51, 305-361): the intervals of all looks together hold with probability 1 - 2 alpha.
"""

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from tasks.quality.spending import Spending, spending_levels
from tasks.store.record import Record

SequentialKind = Literal["planned", "obrien-fleming", "confidence-sequence", "none"]


class LookPlan(Record):
    """The looks at one task.

    Attributes:
        kind: as configured.
        alpha: one-sided level of a PASS that all looks spend together.
        items: items at each look, cumulative; the last is all that the task may draw.
        levels: one-sided level of each look's own interval; of a confidence sequence alpha at every look.
        spending: how alpha is divided, that of a FAIL too; of no meaning to a confidence sequence.
        futility_power: chance of a PASS at the last look below which drawing stops; None: it goes on.
    """

    kind: SequentialKind
    alpha: float
    items: tuple[int, ...]
    levels: tuple[float, ...]
    spending: Spending
    futility_power: float | None

    @property
    def fractions(self) -> tuple[float, ...]:
        """Share of the items at each look: the information, whatever the items' clusters."""
        return tuple(items / self.items[-1] for items in self.items)


class LookLevels(Record):
    """At which look of which plan a task's samples are.

    Attributes:
        plan: the looks at this task.
        look: number of the look, from 1.
    """

    plan: LookPlan
    look: int

    @property
    def is_last(self) -> bool:
        """Whether no more items may be drawn."""
        return self.look == len(self.plan.items)

    def levels(self, metrics: int) -> tuple[float, float]:
        """One-sided levels of PASS and of FAIL at this look; FAIL spends alpha / `metrics`."""
        plan = self.plan
        if plan.kind == "confidence-sequence":
            return plan.alpha, plan.alpha / metrics
        failing = spending_levels(plan.fractions, plan.alpha / metrics, plan.spending)
        return plan.levels[self.look - 1], failing[self.look - 1]


def conditional_power(
    loss: ArrayLike, margin: float, error: ArrayLike, fraction: float, critical: ArrayLike
) -> NDArray[np.float64]:
    """Chance of a PASS at the last look, if the rest is as favourable as equality or as what was seen; broadcasts.

    Args:
        loss: estimate at this look.
        margin: largest loss allowed.
        error: standard error of the estimate, above 0.
        fraction: information at this look, below 1.
        critical: critical value of the last look.
    """
    gap, scale = margin - np.asarray(loss), np.asarray(error) * math.sqrt(fraction)
    walk, drift = fraction * gap / scale, np.maximum(margin, gap) / scale
    rest = 1 - fraction
    distance = walk + drift * rest - np.asarray(critical)
    chance: NDArray[np.float64] = stats.norm.cdf(distance / math.sqrt(rest))
    return chance
