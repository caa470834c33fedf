"""What the gate does with one task of known truth, exactly: the chances of all counts, carried from look to look.

The decisions are those of `simulate_trials`, taken once for every pair of (lost, gained) that is possible at a look.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import signal
from scipy.special import gammaln, xlogy

from tasks.quality.sequential import LookLevels, LookPlan
from tests.benchmarks.simulate_trials import crossed, futile

Chances = NDArray[np.float64]


@dataclass(frozen=True)
class ExactEnd:
    """How the looks at one task end.

    Attributes:
        passed: chance of a PASS.
        failed: chance of a FAIL.
        items: items judged on average.
    """

    passed: float
    failed: float
    items: float


def exact_end(plan: LookPlan, margin: float, discordance: float, loss: float) -> ExactEnd:
    """Chances of every end of a plan, for independent items.

    Args:
        plan: the looks.
        margin: largest loss allowed.
        discordance: true share of items whose answer changes, at least |loss|.
        loss: true loss of accuracy.
    """
    lost, gained = (discordance + loss) / 2, (discordance - loss) / 2
    shape = tuple(_most(plan.items[-1], chance) + 1 for chance in (lost, gained))
    rows, columns = np.indices(shape)
    here = np.zeros(shape)
    here[0, 0] = 1.0
    passed, failed, judged, drawn = 0.0, 0.0, 0.0, 0
    for look, items in enumerate(plan.items, start=1):
        judged += float(here.sum()) * (items - drawn)
        here = signal.fftconvolve(here, _added(items - drawn, lost, gained, shape))[: shape[0], : shape[1]]
        here, drawn = np.where(rows + columns <= items, here.clip(0), 0.0), items
        at = LookLevels(plan=plan, look=look)
        counts = np.minimum(rows, items), np.minimum(columns, items)
        passes, fails = crossed(*counts, items, margin, at, 1)
        passed, failed = passed + float(here[passes].sum()), failed + float(here[fails].sum())
        stops = passes | fails
        if not at.is_last:
            stops |= futile(*counts, margin, at)
        here[stops] = 0.0
    return ExactEnd(passed, failed, judged)


def _most(items: int, chance: float) -> int:
    """Counts above are possible in less than 1 of 10^12 draws."""
    return min(items, int(items * chance + 8 * (items * chance) ** 0.5 + 12))


def _added(items: int, lost: float, gained: float, shape: tuple[int, ...]) -> Chances:
    """Trinomial chances of the counts that `items` more items add."""
    b, c = np.indices(shape)
    rest = items - b - c
    log = gammaln(items + 1) - gammaln(b + 1) - gammaln(c + 1) - gammaln(np.maximum(rest, 0) + 1)
    log += xlogy(b, lost) + xlogy(c, gained) + xlogy(rest, 1 - lost - gained)
    return np.where(rest >= 0, np.exp(log), 0.0)
