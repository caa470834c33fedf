"""Confidence intervals of the gate: one method a kind of metric, each chosen by simulated coverage.

Every interval takes a one-sided `alpha` and gives the two-sided 1 - 2 alpha interval.

- Accuracy on independent items: the score interval of Tango (1998). Wald and Newcombe's method 10 are too
  short when few answers change, which is exactly the case of a good quantization.
- Accuracy on clustered items: Tango's interval on counts divided by the design effect (jackknife variance
  over the variance of independent items, never below 1), with a t quantile. A true loss of 3 points, 5 %
  discordant, 60 clusters of 10 items, alpha 5 %, intra-cluster correlation 0 to 0.2: it accepts 4.0 to 5.8 %,
  plain Tango up to 17 %, a jackknife t interval 7 to 9 %.
- Perplexity: sum(difference of NLL) / sum(tokens) with sections as clusters, delete-one-cluster jackknife,
  t with G - 1 degrees of freedom.
- KL: the same estimator, but the sections of a divergence are positive and skewed, and a t limit lies too
  low: it accepts 6 to 11 % at alpha 5 % and 64 sections. Hall's skewness correction brings that to 5.1 to
  7.0 %. Differences of NLL are symmetric with heavy tails: there t holds its level and the correction does
  not (6.5 %), so each has its own.
- Speed: t on the log-ratios of interleaved blocks.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from tasks.store.record import Record

MIN_TEXT_CLUSTERS = 60
"""Sections below which perplexity and KL are refused: 20 topic-sized ones covered only 85 to 91 %."""

MIN_ITEM_CLUSTERS = 30
"""Effective number of templates below which accuracy is refused (size up to 8.6 % at 20, 6.5 % at 30)."""

MIN_SPEED_BLOCKS = 8
"""Interleaved blocks below which a speed ratio is refused."""

Floats = NDArray[np.float64]
Method = Literal[
    "score (Tango)",
    "score (Tango), design effect, t",
    "cluster jackknife, t",
    "cluster jackknife, t, skewness-corrected (Hall)",
    "t on log-ratios",
]


class TooFewClusters(ValueError):
    """The data have too few independent units for the interval to hold its level."""


class Interval(Record):
    """A two-sided confidence interval.

    Attributes:
        estimate: the point estimate.
        low: lower limit.
        high: upper limit.
        level: two-sided confidence, 1 - 2 alpha.
        n: items, sections or blocks.
        clusters: independent units among them.
        method: how it was made.
    """

    estimate: float
    low: float
    high: float
    level: float
    n: int
    clusters: int
    method: Method


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
    linear = -(b + c) + (2 * n - b + c) * d
    gain = (np.sqrt(np.maximum(linear**2 + 8 * n * c * d * (1 - d), 0)) - linear) / (4 * n)
    variance = np.maximum(n * (2 * gain + d * (1 - d)), np.finfo(np.float64).tiny)
    statistic: Floats = (b - c - n * d) / np.sqrt(variance)
    return statistic


def tango_limits(
    lost: ArrayLike, gained: ArrayLike, items: ArrayLike, alpha: ArrayLike
) -> tuple[Floats, Floats]:
    """Lower and upper score limit of the loss of accuracy, each at one-sided `alpha`; arguments broadcast."""
    b, c, n, a = np.broadcast_arrays(*(np.asarray(x, dtype=np.float64) for x in (lost, gained, items, alpha)))
    # The upper limit is the lower one of the swapped models, negated. Bisection, not scipy's find_root: it
    # never evaluates the ends of the bracket, where the variance can be 0.
    first, second, z = np.stack([b, c]), np.stack([c, b]), stats.norm.isf(a)
    low, high = np.full(first.shape, -1.0), (first - second) / n
    for _ in range(45):
        middle = (low + high) / 2
        excluded = tango_statistic(first, second, n, middle) > z
        low, high = np.where(excluded, middle, low), np.where(excluded, high, middle)
    limits = (low + high) / 2
    return limits[0], -limits[1]


def jackknife_ratio(values: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """sum(values) / sum(weights) with its delete-one-cluster jackknife error (CV3).

    Args:
        values: cluster totals of the numerator, shape (..., G).
        weights: cluster totals of the denominator, shape (..., G), > 0.

    Returns:
        (ratio, standard error, skewness of the pseudo-values), each of shape (...).
    """
    clusters = values.shape[-1]
    value, weight = values.sum(-1), weights.sum(-1)
    ratio = value / weight
    influence = (values - ratio[..., None] * weights) / (weight[..., None] - weights)
    square = (influence**2).mean(-1)
    error = np.sqrt((clusters - 1) * square)
    with np.errstate(invalid="ignore", divide="ignore"):
        skewness = np.where(square > 0, (influence**3).mean(-1) / square**1.5, 0.0)
    return ratio, error, skewness


def accuracy_limits(losses: Floats, gains: Floats, items: Floats, alpha: float) -> tuple[Floats, Floats]:
    """Limits of the loss of accuracy from counts a cluster, each of shape (..., G); sizes may differ.

    The degrees of freedom are those of the effective number of clusters n^2 / sum(size^2), so that one large
    template among many small ones counts as what it is.
    """
    n, lost, gained = items.sum(-1), losses.sum(-1), gains.sum(-1)
    loss, error, _ = jackknife_ratio(losses - gains, items)
    independent = ((lost + gained) / n - loss**2) / n
    with np.errstate(invalid="ignore", divide="ignore"):
        effect = np.where(independent > 0, np.maximum(error**2 / independent, 1.0), 1.0)
    tail = stats.norm.sf(stats.t.isf(alpha, effective_clusters(items) - 1))
    return tango_limits(lost / effect, gained / effect, n / effect, tail)


def effective_clusters(items: Floats) -> Floats:
    """Number of equal clusters that carry as much as these sizes, shape (..., G) to (...)."""
    effective: Floats = items.sum(-1) ** 2 / (items**2).sum(-1)
    return effective


def text_limits(values: Floats, weights: Floats, alpha: float, *, skewed: bool) -> tuple[Floats, Floats]:
    """Limits of a ratio from cluster totals, shape (..., G): t, or Hall's transformation of t where `skewed`.

    Hall (1992), Journal of the Royal Statistical Society B 54, 221-228: a monotone cubic transformation
    removes the skewness of the studentized mean.
    """
    clusters = values.shape[-1]
    ratio, error, skewness = jackknife_ratio(values, weights)
    quantile = stats.t.isf(alpha, clusters - 1)
    slope = skewness / np.sqrt(clusters) * (1.0 if skewed else 0.0)

    def studentized(t: float) -> Floats:
        shifted = t - slope / 6
        flat = np.abs(slope) < 1e-6
        safe = np.where(flat, 1.0, slope)
        bent: Floats = np.where(flat, shifted, 3 / safe * (np.cbrt(1 + safe * shifted) - 1))
        return bent

    return ratio - studentized(quantile) * error, ratio - studentized(-quantile) * error


def accuracy_interval(losses: ArrayLike, clusters: ArrayLike, *, alpha: float) -> Interval:
    """Loss of accuracy between paired items.

    Args:
        losses: reference minus candidate for each item: -1, 0 or 1, shape (n,).
        clusters: label of each item's template, shape (n,).
        alpha: one-sided level.

    Raises:
        TooFewClusters: fewer than 30 effective clusters.
    """
    loss = np.asarray(losses, dtype=np.float64)
    codes, count = _coded(clusters)
    lost, gained, sizes = (_totals(codes, x) for x in (loss > 0, loss < 0, np.ones_like(loss)))
    if count == loss.size:
        low, high = tango_limits(lost.sum(), gained.sum(), loss.size, alpha)
        return _interval(loss.mean(), low, high, alpha, loss.size, count, "score (Tango)")
    effective = float(effective_clusters(sizes))
    if effective < MIN_ITEM_CLUSTERS:
        raise TooFewClusters(
            f"{loss.size} items in {count} clusters are worth {effective:.0f} equal ones; accuracy needs "
            f"{MIN_ITEM_CLUSTERS}: use more templates, or more even ones"
        )
    low, high = accuracy_limits(lost, gained, sizes, alpha)
    return _interval(loss.mean(), low, high, alpha, loss.size, count, "score (Tango), design effect, t")


def text_interval(
    values: ArrayLike, weights: ArrayLike, clusters: ArrayLike, *, alpha: float, skewed: bool = False
) -> Interval:
    """sum(values) / sum(weights) over clustered sections: a difference of NLL, or a KL (`skewed`), a token.

    Raises:
        TooFewClusters: fewer than 60 clusters.
    """
    value, weight = np.asarray(values, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    codes, count = _coded(clusters)
    if count < MIN_TEXT_CLUSTERS:
        raise TooFewClusters(
            f"{count} independent sections; perplexity and KL need {MIN_TEXT_CLUSTERS}: use more text"
        )
    low, high = text_limits(_totals(codes, value), _totals(codes, weight), alpha, skewed=skewed)
    method: Method = "cluster jackknife, t, skewness-corrected (Hall)" if skewed else "cluster jackknife, t"
    return _interval(value.sum() / weight.sum(), low, high, alpha, value.size, count, method)


def ratio_interval(log_ratios: ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean of the log-ratios of interleaved blocks, one a block; exp() of its fields are ratios.

    Raises:
        TooFewClusters: fewer than 8 blocks.
        ValueError: a log-ratio is not finite.
    """
    ratios = np.asarray(log_ratios, dtype=np.float64)
    if ratios.size < MIN_SPEED_BLOCKS:
        raise TooFewClusters(
            f"{ratios.size} interleaved blocks; a speed ratio needs {MIN_SPEED_BLOCKS}: measure more"
        )
    if not np.isfinite(ratios).all():
        raise ValueError(
            f"log-ratio of block {int(np.argmin(np.isfinite(ratios)))} is not finite; measure it again"
        )
    alpha = (1 - confidence) / 2
    half = stats.t.isf(alpha, ratios.size - 1) * stats.sem(ratios)
    mean = ratios.mean()
    return _interval(mean, mean - half, mean + half, alpha, ratios.size, ratios.size, "t on log-ratios")


def _coded(clusters: ArrayLike) -> tuple[NDArray[np.intp], int]:
    labels, codes = np.unique(np.asarray(clusters), return_inverse=True)
    return codes, labels.size


def _totals(codes: NDArray[np.intp], values: ArrayLike) -> Floats:
    return np.bincount(codes, np.asarray(values)).astype(np.float64)


def _interval(
    estimate: Any, low: Any, high: Any, alpha: float, n: int, clusters: int, method: Method
) -> Interval:
    return Interval(
        estimate=float(estimate),
        low=float(low),
        high=float(high),
        level=1 - 2 * alpha,
        n=n,
        clusters=clusters,
        method=method,
    )
