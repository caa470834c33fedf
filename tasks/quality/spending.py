"""Alpha spending: how much of a level is used up at each look, and the level of each look that follows from it.

Judging the same growing sample four times at 5 % accepts a bad candidate in up to 13 %. A spending function (Lan & DeMets 1983,
Biometrika 70, 659-663) divides alpha over the looks: at the share t of the items, f(t) of it may be used, f(1) = alpha. The
function of O'Brien-Fleming type spends little early, so that the last look has nearly the whole level; the power family
alpha t^rho (Kim & DeMets 1987, Biometrika 74, 149-154) goes from early spending (rho = 0.5) over one like Pocock's (1) to one
like O'Brien and Fleming's (3).
"""

import math
from functools import lru_cache

import numpy as np
from pydantic import Field
from scipy import stats

from tasks.quality.walk import Walk
from tasks.store.record import Record

LINEAR_SHARE = 1e-8
"""Share of alpha that the O'Brien-Fleming type function spends linearly, so that no look has a level of 0 and with it an
infinite interval."""


class Spending(Record):
    """A spending function.

    Attributes:
        exponent: rho of the power family alpha t^rho; None: the function of O'Brien-Fleming type.
    """

    exponent: float | None = Field(None, gt=0)


OBRIEN_FLEMING = Spending(exponent=None)


@lru_cache(maxsize=1024)
def spending_levels(
    fractions: tuple[float, ...], alpha: float, spending: Spending = OBRIEN_FLEMING
) -> tuple[float, ...]:
    """One-sided level of each look.

    Args:
        fractions: information at each look, ascending, the last 1.
        alpha: one-sided level of all looks together.
        spending: how much of it each look may have used.
    """
    times = np.asarray(fractions)
    if spending.exponent is None:
        spent = 2 * stats.norm.sf(stats.norm.isf(alpha / 2) / np.sqrt(times))
        spent = (1 - LINEAR_SHARE) * spent + LINEAR_SHARE * alpha * times
    else:
        spent = alpha * times**spending.exponent
    critical: list[float] = []
    walk = Walk(drift=0.0)
    for time, increment in zip(fractions, np.diff(spent, prepend=0.0), strict=True):
        critical.append(walk.critical(time, float(increment)))
        walk.step(time, critical[-1] * math.sqrt(time), -math.inf)
    return tuple(float(level) for level in stats.norm.sf(critical))
