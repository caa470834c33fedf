"""An always-valid confidence sequence for the loss of accuracy, by betting.

A bettor who holds "the loss is at least m" to be false stakes a share of the capital on each item's
difference d in {-1, 0, 1}: the capital is multiplied by 1 + stake x (m - d) / (1 - m). If the loss is m or
more, the capital is a nonnegative supermartingale, and the chance that it ever reaches 1 / alpha is at most
alpha (Ville), whatever the number of looks and without any approximation for large samples (Waudby-Smith &
Ramdas 2024, Journal of the Royal Statistical Society B 86, 1-27). The capital starts divided over a grid of
constant stakes. Of constant stakes the product does not depend on the order of the items, so the capital at a
look is a function of the three counts: no verdict depends on the order in which samples are stored. The price is
about twice the items of an alpha-spending plan for the same power.

It needs independent items: of clustered items no exact bet is known that may be made in the middle of a cluster.
"""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp

from tasks.quality.paired_proportions import Floats

STAKES = np.geomspace(0.02, 0.95, 24)
"""Shares of the largest possible stake. The best one is about margin / discordance: 0.2 for 1 point at 5 %."""


def log_capital(lost: ArrayLike, gained: ArrayLike, items: ArrayLike, loss: ArrayLike) -> Floats:
    """Log of the capital of bets against "the true loss is at least `loss`"; broadcasts.

    Args:
        lost: items that the reference answers right and the candidate wrong.
        gained: the reverse.
        items: all items.
        loss: reference minus candidate accuracy under the hypothesis, inside (-1, 1).
    """
    b, c, n, m = (np.asarray(x, dtype=np.float64)[..., None] for x in (lost, gained, items, loss))
    odds = STAKES / (1 - m)
    terms = b * np.log1p(-STAKES) + c * np.log1p(odds * (1 + m)) + (n - b - c) * np.log1p(odds * m)
    capital: Floats = logsumexp(terms, axis=-1) - math.log(STAKES.size)
    return capital


def sequence_limits(
    lost: ArrayLike, gained: ArrayLike, items: ArrayLike, alpha: ArrayLike
) -> tuple[Floats, Floats]:
    """Lower and upper limit of the loss, each wrong at any look with a chance of at most `alpha`; broadcasts."""
    arguments = (np.asarray(x, dtype=np.float64) for x in (lost, gained, items, alpha))
    b, c, n, a = np.broadcast_arrays(*arguments)
    # The lower limit is the upper one of the swapped models, negated. The capital grows with the loss.
    first, second = np.stack([c, b]), np.stack([b, c])
    low, high = (first - second) / n, np.ones(first.shape)
    for _ in range(45):
        middle = (low + high) / 2
        excluded = log_capital(first, second, n, middle) >= -np.log(a)
        low, high = np.where(excluded, low, middle), np.where(excluded, middle, high)
    return -high[0], high[1]


def critical_statistics(items: ArrayLike, margin: float, discordance: ArrayLike, alpha: float) -> Floats:
    """Standardized gap to `margin` at which the upper limit falls below it, for planning; broadcasts.

    The gap is (margin x items - net losses) / sqrt(discordance x items), with the expected number of changes.
    """
    n = np.asarray(items, dtype=np.float64)
    changed = np.asarray(discordance, dtype=np.float64) * n
    low, high = -changed, changed
    for _ in range(45):
        net = (low + high) / 2
        passed = log_capital((changed + net) / 2, (changed - net) / 2, n, margin) >= -math.log(alpha)
        low, high = np.where(passed, net, low), np.where(passed, high, net)
    critical: Floats = (margin * n - low) / np.sqrt(changed)
    return critical
