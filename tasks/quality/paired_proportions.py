"""Score tests of a difference of paired proportions: Tango's, and its skewness-corrected form.

Counts may be fractional: those of clustered items are divided by their design effect first.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

Floats = NDArray[np.float64]


def tango_statistic(lost: ArrayLike, gained: ArrayLike, items: ArrayLike, loss: ArrayLike) -> Floats:
    """Score statistic of "the true loss of accuracy is `loss`", about standard normal; broadcasts.

    Tango (1998), Statistics in Medicine 17, 891-908: the nuisance parameter, the chance of a gain, is the
    positive root of its constrained likelihood equation. Counts may be fractional (after a design effect).

    Args:
        lost: items that the reference answers right and the candidate wrong.
        gained: the reverse.
        items: all items.
        loss: reference minus candidate accuracy under the hypothesis, inside (-1, 1).
    """
    b, c, n, d = (np.asarray(x, dtype=np.float64) for x in (lost, gained, items, loss))
    gain = _constrained_gain(b, c, n, d)
    variance = np.maximum(n * (2 * gain + d * (1 - d)), np.finfo(np.float64).tiny)
    statistic: Floats = (b - c - n * d) / np.sqrt(variance)
    return statistic


def score_statistic(lost: ArrayLike, gained: ArrayLike, items: ArrayLike, loss: ArrayLike) -> Floats:
    """Tango's statistic or its skewness-corrected form, whichever is nearer to 0; arguments as there.

    Gart & Nam (1990), Biometrics 46, 637-643: the corrected value solves z + A (z^2 - 1) = statistic, where
    6 A is the skewness of the mean difference under the hypothesis.

    Where every change went one way, the hypothesis of a smaller change that way is one of a single binomial, whose exact test
    (Clopper & Pearson 1934, Biometrika 26, 404-413) exists; it holds where it is nearer to 0 still. The score test's size there
    swings with the counts, up to 5.6 % at a level of 5. Of counts over a design effect, which are no integers, it is between two such.
    """
    b, c, n, d = (np.asarray(x, dtype=np.float64) for x in (lost, gained, items, loss))
    plain, gain = tango_statistic(b, c, n, d), _constrained_gain(b, c, n, d)
    changed = 2 * gain + d
    variance = np.maximum(changed - d**2, 1e-12)
    a = d * (1 - 3 * changed + 2 * d**2) / (6 * variance**1.5 * np.sqrt(n))
    corrected = 2 * (a + plain) / (1 + np.sqrt(np.maximum(1 + 4 * a * (a + plain), 0)))
    nearer = np.where(np.abs(corrected) < np.abs(plain), corrected, plain)
    for sign, ways, others in ((1, b, c), (-1, c, b)):
        one_way = (others == 0) & (sign * d > 0) & (ways > sign * n * d)
        if one_way.any():
            exact = np.minimum(sign * nearer, _exact_quantile(ways, n, sign * d))
            nearer = np.where(one_way, sign * exact, nearer)
    return nearer


def _exact_quantile(changed: Floats, n: Floats, chance: Floats) -> Floats:
    """Normal quantile, at least 0, of the chance that a binomial of `n` reaches `changed`; of use where `changed` is above its mean."""
    tail = special.betainc(np.maximum(changed, 1e-9), np.maximum(n - changed, 0) + 1, np.clip(chance, 0, 1))
    quantile: Floats = np.maximum(-special.ndtri(tail), 0)
    return quantile


def tango_limits(
    lost: ArrayLike, gained: ArrayLike, items: ArrayLike, alpha: ArrayLike
) -> tuple[Floats, Floats]:
    """Tango's own limits of the loss of accuracy, each at one-sided `alpha`; arguments broadcast."""
    return _solved(tango_statistic, lost, gained, items, stats.norm.isf(alpha))


def score_limits(
    lost: ArrayLike, gained: ArrayLike, items: ArrayLike, quantile: ArrayLike
) -> tuple[Floats, Floats]:
    """Limits of the loss of accuracy where `score_statistic` is as large as `quantile`; arguments broadcast."""
    return _solved(score_statistic, lost, gained, items, quantile)


def _solved(
    statistic: Callable[..., Floats],
    lost: ArrayLike,
    gained: ArrayLike,
    items: ArrayLike,
    quantile: ArrayLike,
) -> tuple[Floats, Floats]:
    arguments = (np.asarray(x, dtype=np.float64) for x in (lost, gained, items, quantile))
    b, c, n, z = np.broadcast_arrays(*arguments)
    # The upper limit is the lower one of the swapped models, negated. Bisection, not scipy's find_root: it
    # never evaluates the ends of the bracket, where the variance can be 0.
    first, second = np.stack([b, c]), np.stack([c, b])
    low, high = np.full(first.shape, -1.0), (first - second) / n
    for _ in range(45):
        middle = (low + high) / 2
        excluded = statistic(first, second, n, middle) > z
        low, high = np.where(excluded, middle, low), np.where(excluded, high, middle)
    limits = (low + high) / 2
    return limits[0], -limits[1]


def _constrained_gain(b: Floats, c: Floats, n: Floats, d: Floats) -> Floats:
    """Most likely chance of a gain where the loss of accuracy is `d`."""
    linear = -(b + c) + (2 * n - b + c) * d
    gain: Floats = (np.sqrt(np.maximum(linear**2 + 8 * n * c * d * (1 - d), 0)) - linear) / (4 * n)
    return gain
