"""Confidence intervals of the gate: one method a kind of metric, each chosen by simulated coverage.

Every interval takes a one-sided `alpha` and gives the two-sided 1 - 2 alpha interval. One rule runs through
all of them: each limit is the wider of the plain method's and the skewness-corrected one's, because few
changed answers and few odd sections are skewed, and the plain methods then err on one side.

- Accuracy on independent items: the score interval of Tango (1998), and its skewness-corrected form (Gart &
  Nam 1990; for paired proportions Laud 2025). Tango's upper limit holds its level; its lower limit lies above
  the truth 1.1 to 2.7 times as often as it should at 20 to 40 expected changes. The wider one: 5.0 % on
  average at alpha 5 %, at most 5.6 % (where every change is a loss: the counts are a coarse lattice).
- Accuracy on clustered items: the same on counts divided by the design effect (jackknife variance over the
  variance of independent items, never below 1), with a t quantile whose degrees of freedom are those of the
  clusters in which something changed: they are what the variance was estimated from. All losses in one
  direction, 60 clusters of 10 items: accepted 2.4 to 5.8 % at alpha 5 % (with the degrees of freedom of all
  clusters 10 %). What remains: losses that always come in whole clusters, of which fewer than ten change
  (intra-cluster correlation 0.4, 40 clusters of 15 items): up to 8.5 %.
- Perplexity: sum(difference of NLL) / sum(tokens) with sections as clusters, delete-one-cluster jackknife,
  t with G - 1 degrees of freedom, and Hall's (1992) correction of it. 60 sections, alpha 5 %: 4.7 to 5.0 % on
  normal and heavy-tailed changes, 4.9 to 5.5 % on changes as skewed as a divergence (t alone: 6.4 to 8.9 %).
- KL: the same estimator, but the sections of a divergence are positive and always skewed to the right, and
  sixty of them do not show how much: the upper limit takes at least the skewness of a lognormal of the
  observed spread. Gamma and lognormal sections with a spread of 0.5 to 0.9 of their mean: 2.3 to 4.3 %
  (t 6.9 to 10.7 %, Hall's correction alone 5.6 to 7.2 %); one section in ten three times as divergent: 5.0 %.
  Its lower limit is the corrected one, 5.3 % at most.
- Speed: t on the log-ratios of interleaved blocks.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from tasks.quality.paired_proportions import Floats, score_limits
from tasks.store.record import Record

MIN_TEXT_CLUSTERS = 60
"""Sections below which perplexity and KL are refused: 20 topic-sized ones covered only 85 to 91 %."""

MIN_ITEM_CLUSTERS = 30
"""Effective number of templates below which accuracy is refused (size up to 8.6 % at 20, 6.5 % at 30)."""

MIN_SPEED_BLOCKS = 8
"""Interleaved blocks below which a speed ratio is refused."""

FEWEST_CHANGED_CLUSTERS = 5
"""A variance from fewer changed clusters gets the t quantile of this many: no change at all is no lack of proof."""

UNSEEN_SKEWNESS, UNSEEN_SKEWNESS_OF_DIVERGENCE = 1.5, 2.0
"""Sixty sections show two thirds of the skewness of an exponential, half of that of a few odd sections."""

Method = Literal[
    "score (Tango), skewness-corrected",
    "score (Tango), skewness-corrected, design effect, t",
    "cluster jackknife, t, skewness-corrected (Hall)",
    "confidence sequence (betting)",
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

    The degrees of freedom are those of the effective number of clusters, (sum size)^2 / sum(size^2), counted
    once over their items and once over their changed items; the smaller holds.
    """
    n, lost, gained = items.sum(-1), losses.sum(-1), gains.sum(-1)
    effect = design_effect(losses, gains, items)
    changed = np.maximum(effective_clusters(losses + gains), FEWEST_CHANGED_CLUSTERS)
    quantile = stats.t.isf(alpha, np.minimum(changed, effective_clusters(items)) - 1)
    return score_limits(lost / effect, gained / effect, n / effect, quantile)


def design_effect(losses: Floats, gains: Floats, items: Floats) -> Floats:
    """Jackknife variance of the loss over that of independent items, at least 1; shape (..., G) to (...)."""
    n = items.sum(-1)
    loss, error, _ = jackknife_ratio(losses - gains, items)
    independent = ((losses + gains).sum(-1) / n - loss**2) / n
    with np.errstate(invalid="ignore", divide="ignore"):
        effect: Floats = np.where(independent > 0, np.maximum(error**2 / independent, 1.0), 1.0)
    return effect


def effective_clusters(items: Floats) -> Floats:
    """Number of equal clusters that carry as much as these sizes, shape (..., G) to (...)."""
    effective: Floats = items.sum(-1) ** 2 / np.maximum((items**2).sum(-1), np.finfo(np.float64).tiny)
    return effective


def text_limits(values: Floats, weights: Floats, alpha: float, *, skewed: bool) -> tuple[Floats, Floats]:
    """Limits of a ratio from cluster totals, shape (..., G).

    Hall (1992), Journal of the Royal Statistical Society B 54, 221-228: a monotone cubic transformation
    removes the skewness of the studentized mean. Each limit is the wider with and without it; for a
    divergence (`skewed`) the upper one takes at least a lognormal's skewness, the lower one the observed.
    """
    clusters = values.shape[-1]
    ratio, error, skewness = jackknife_ratio(values, weights)
    quantile = stats.t.isf(alpha, clusters - 1)
    least = UNSEEN_SKEWNESS * np.minimum(skewness, 0.0)
    most = UNSEEN_SKEWNESS * np.maximum(skewness, 0.0)
    if skewed:
        with np.errstate(invalid="ignore", divide="ignore"):
            spread = np.where(error > 0, error * np.sqrt(clusters) / np.maximum(ratio, 0), 0.0)
        least = skewness
        most = np.maximum(UNSEEN_SKEWNESS_OF_DIVERGENCE * skewness, lognormal_skewness(spread))
    return (
        ratio - unskewed(quantile, least / np.sqrt(clusters)) * error,
        ratio - unskewed(-quantile, most / np.sqrt(clusters)) * error,
    )


def lognormal_skewness(spread: ArrayLike) -> Floats:
    """Skewness of a lognormal variable from its standard deviation over its mean."""
    bounded = np.minimum(np.asarray(spread, dtype=np.float64), 1e3)
    found: Floats = 3 * bounded + bounded**3
    return found


def unskewed(quantile: float, skewness: ArrayLike) -> Floats:
    """Hall's transformation of a t quantile; `skewness` is that of the mean."""
    slope = np.clip(np.asarray(skewness, dtype=np.float64), -1, 1)  # the limits are widest near 1
    shifted, flat = quantile - slope / 6, np.abs(slope) < 1e-6
    safe = np.where(flat, 1.0, slope)
    bent: Floats = np.where(flat, shifted, 3 / safe * (np.cbrt(1 + safe * shifted) - 1))
    return bent


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
        low, high = score_limits(lost.sum(), gained.sum(), loss.size, stats.norm.isf(alpha))
        return interval_of(
            loss.mean(), low, high, alpha, loss.size, count, "score (Tango), skewness-corrected"
        )
    effective = float(effective_clusters(sizes))
    if effective < MIN_ITEM_CLUSTERS:
        raise TooFewClusters(
            f"{loss.size} items in {count} clusters are worth {effective:.0f} equal ones; accuracy needs "
            f"{MIN_ITEM_CLUSTERS}: use more templates, or more even ones"
        )
    low, high = accuracy_limits(lost, gained, sizes, alpha)
    return interval_of(
        loss.mean(), low, high, alpha, loss.size, count, "score (Tango), skewness-corrected, design effect, t"
    )


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
    return interval_of(
        value.sum() / weight.sum(),
        low,
        high,
        alpha,
        value.size,
        count,
        "cluster jackknife, t, skewness-corrected (Hall)",
    )


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
    return interval_of(mean, mean - half, mean + half, alpha, ratios.size, ratios.size, "t on log-ratios")


def _coded(clusters: ArrayLike) -> tuple[NDArray[np.intp], int]:
    labels, codes = np.unique(np.asarray(clusters), return_inverse=True)
    return codes, labels.size


def _totals(codes: NDArray[np.intp], values: ArrayLike) -> Floats:
    return np.bincount(codes, np.asarray(values)).astype(np.float64)


def interval_of(
    estimate: Any, low: Any, high: Any, alpha: float, n: int, clusters: int, method: Method
) -> Interval:
    """The record, from numbers or arrays without a dimension."""
    return Interval(
        estimate=float(estimate),
        low=float(low),
        high=float(high),
        level=1 - 2 * alpha,
        n=n,
        clusters=clusters,
        method=method,
    )
