"""Drift of one check from source to candidate, with an interval, and its verdict where a margin is set.

Shares are differences of paired proportions: the gate's score interval.

Lengths are log-ratios of tokens (the ending token counted, so that an empty answer has a logarithm), with the
interval that the gate has for differences of log-likelihood: cluster jackknife, the wider of t and Hall's
skewness correction. It was chosen against the BCa bootstrap of scipy on simulated answers, 64 templates of two,
cut at 48 tokens. At a nominal 10 % it misses on 12.3 % of 20,000 sets where few answers change and some of them
collapse (10.7 % on the side of the collapses), and on 9.4 % where half of them change; BCa on 19.3 and 11.9 %
of 800. With 128 templates it is 11.3 and 9.5 %. A length margin deserves some distance.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tasks.quality.intervals import Interval, accuracy_interval, text_interval
from tasks.store.record import Record

CheckName = Literal[
    "refusal",
    "repetition",
    "length",
    "format_lost",
    "hit_limit",
    "empty",
    "off_language",
    "language_changed",
    "answer_changed",
]
Harm = Literal["growth", "either"]
Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]


class CheckDrift(Record):
    """One check over all prompts. `drift` > 0: the candidate does it more often, or is longer.

    Attributes:
        check: its name; "language_changed" and "answer_changed" compare the candidate with the source itself.
        unit: "fraction" of the prompts, or "log ratio" of lengths (exp() of estimate and limits are factors).
        source: rate of the source; for "length" the mean tokens of an answer.
        candidate: rate of the candidate, likewise.
        drift: candidate minus source, with its two-sided 1 - 2 alpha interval.
        margin: largest drift allowed, in `unit`; None: reported only.
        harm: "growth": only more is worse; "either": so is less.
        items: prompts that the check applies to.
        verdict: PASS when the interval lies within the margin, FAIL when beyond it; None without a margin.
    """

    check: CheckName
    unit: Literal["fraction", "log ratio"]
    source: float
    candidate: float
    drift: Interval
    margin: float | None
    harm: Harm
    items: int
    verdict: Verdict | None


class PairedValues(Record):
    """One check's values of both models on the same prompts: 0 or 1, or lengths in tokens."""

    check: CheckName
    source: tuple[float, ...]
    candidate: tuple[float, ...]
    clusters: tuple[str, ...]
    margin: float | None = None
    harm: Harm = "growth"


def drift_of(values: PairedValues, *, alpha: float, alpha_fail: float) -> CheckDrift:
    """The drift of one check.

    Args:
        values: at least 60 clusters for "length"; at least 30, or each prompt its own, for the others.
        alpha: one-sided level of a PASS and of the interval shown.
        alpha_fail: of a FAIL; not larger.

    Raises:
        TooFewClusters: the interval would not hold its level.
    """
    source, candidate = np.array(values.source), np.array(values.candidate)
    shown = _interval(values, source, candidate, alpha)
    verdict: Verdict | None = None
    if values.margin is not None:
        strict = _interval(values, source, candidate, alpha_fail)
        verdict = verdict_of(shown, strict, values.margin, values.harm)
    return CheckDrift(
        check=values.check,
        unit="log ratio" if values.check == "length" else "fraction",
        source=float(source.mean()),
        candidate=float(candidate.mean()),
        drift=shown,
        margin=values.margin,
        harm=values.harm,
        items=source.size,
        verdict=verdict,
    )


def verdict_of(shown: Interval, strict: Interval, margin: float, harm: Harm) -> Verdict:
    """PASS by `shown`, FAIL by `strict`; harm in either direction needs both limits within (two one-sided tests)."""
    if shown.high < margin and (harm == "growth" or shown.low > -margin):
        return "PASS"
    if strict.low > margin or (harm == "either" and strict.high < -margin):
        return "FAIL"
    return "INCONCLUSIVE"


def _interval(
    values: PairedValues, source: NDArray[np.float64], candidate: NDArray[np.float64], alpha: float
) -> Interval:
    if values.check == "length":
        change = np.log((candidate + 1) / (source + 1))
        return text_interval(change, np.ones_like(change), values.clusters, alpha=alpha)
    return accuracy_interval(candidate - source, values.clusters, alpha=alpha)
