"""A judge's calibration: what it must show on the day's prompts, each by the limit of an interval.

- Probes: a corrupted answer must lose in both orders (exact binomial limit, Clopper and Pearson 1934).
- Position: between identical answers a judge says tie, or A as often as B. The share preferring A minus the
  share preferring B is a difference of paired proportions; Tango's interval must lie within the allowed bias.
- Consistency: on the pairs to be judged, the same answer in both orders. An inconsistent judge would look kind,
  for what it does not decide counts as a tie.
- Family: the judge must not be of a judged model's family, nor of an unknown one.
- People: Cohen's kappa with human labels, where there are any.

Probes and identical answers are of one template each, so that they are independent.
Too few items fail like a bad judge does: the limit lies too low.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from scipy.stats import binomtest

from configs.behaviour import Calibration
from tasks.judging.both_orders import Outcome
from tasks.judging.human_labels import Agreement
from tasks.judging.judge import Preference
from tasks.judging.probes import Probe
from tasks.quality.intervals import accuracy_interval
from tasks.store.record import Record


class Criterion(Record):
    """One demand on the judge.

    Attributes:
        name: "known-answer probes", "position bias", "position consistency", "family", "human agreement".
        met: whether the limit keeps the threshold.
        reason: one line with figures.
        estimate: what was found; None where nothing could be.
        limit: the limit of its interval that decides; None likewise.
        threshold: what the limit must keep; None for the family.
        items: what it rests on.
    """

    name: str
    met: bool
    reason: str
    estimate: float | None = None
    limit: float | None = None
    threshold: float | None = None
    items: int = 0


class ProbeResult(Record):
    """One probe and what the judge said: "first" is the intact answer."""

    probe: Probe
    outcome: Outcome


def probe_criterion(results: Sequence[ProbeResult], settings: Calibration) -> Criterion:
    """The corrupted answer must lose."""
    won = sum(result.outcome == "first" for result in results)
    kinds = _listed(result.probe.kind.replace("_", " ") for result in results if result.outcome != "first")
    replies = _listed(result.outcome for result in results if result.outcome != "first")
    return _share(
        "known-answer probes",
        won,
        len(results),
        settings.min_probe_rate,
        settings.alpha,
        f"the corrupted answer lost in both orders{f' (not: {kinds}; {replies})' if kinds else ''}",
    )


def consistency_criterion(outcomes: Sequence[Outcome], settings: Calibration) -> Criterion:
    """The judged pairs must get one answer in both orders."""
    kept = sum(outcome not in ("inconsistent", "unparsable") for outcome in outcomes)
    return _share(
        "position consistency",
        kept,
        len(outcomes),
        settings.min_position_consistency,
        settings.alpha,
        "the same answer in both orders",
    )


def position_criterion(replies: Sequence[Preference], settings: Calibration) -> Criterion:
    """Identical answers must be ties, or neutral; an unparsable reply is neither.

    Args:
        replies: to pairs of twice the same answer, each of a template of its own.
        settings: thresholds.
    """
    name, threshold = "position bias", settings.max_position_bias
    if not replies:
        return Criterion(
            name=name, met=False, reason="no identical answers could be asked about", threshold=threshold
        )
    counts = Counter(replies)
    leaning = {"A": 1.0, "B": -1.0}
    # Whatever is no reply counts towards the side that is ahead: it must not hide a bias.
    ahead = 1.0 if counts["A"] >= counts["B"] else -1.0
    values = [ahead if reply == "unparsable" else leaning.get(reply, 0.0) for reply in replies]
    interval = accuracy_interval(values, range(len(values)), alpha=settings.alpha)
    limit = max(abs(interval.low), abs(interval.high))
    return Criterion(
        name=name,
        met=limit < threshold,
        reason=(
            f"between identical answers A {counts['A']}, B {counts['B']}, tie {counts['tie']}, "
            f"unparsable {counts['unparsable']}: bias up to {limit:.2f}, allowed {threshold:g}"
        ),
        estimate=interval.estimate,
        limit=limit,
        threshold=threshold,
        items=len(replies),
    )


def family_criterion(judge: frozenset[str], judged: frozenset[str]) -> Criterion:
    """A judge has no vote on its own family, nor where either family is unknown."""
    if not judge or not judged:
        unknown = "the judge's" if not judge else "the judged model's"
        reason = f"{unknown} family is unknown; name it (judge.provider.family, or a telling model.name)"
        return Criterion(name="family", met=False, reason=reason)
    shared = sorted(judge & judged)
    reason = (
        f"the judge is of the judged model's family: {', '.join(shared)}"
        if shared
        else f"the judge is of family {', '.join(sorted(judge))}, the judged model of {', '.join(sorted(judged))}"
    )
    return Criterion(name="family", met=not shared, reason=reason)


def human_criterion(found: Agreement, settings: Calibration) -> Criterion:
    """Agreement with people beyond chance."""
    if found.kappa is None or found.low is None:
        reason = f"kappa is undefined on {found.pairs} pairs: only one category was used"
    else:
        reason = f"kappa {found.kappa:.2f}, at least {found.low:.2f}, on {found.pairs} pairs; needed {settings.min_kappa:g}"
    return Criterion(
        name="human agreement",
        met=found.low is not None and found.low > settings.min_kappa,
        reason=reason,
        estimate=found.kappa,
        limit=found.low,
        threshold=settings.min_kappa,
        items=found.pairs,
    )


def _share(name: str, good: int, items: int, threshold: float, alpha: float, what: str) -> Criterion:
    """A share whose lower exact limit must exceed a threshold."""
    if items == 0:
        return Criterion(
            name=name, met=False, reason=f"{name}: there is nothing to ask about", threshold=threshold
        )
    bounds = binomtest(good, items, alternative="greater").proportion_ci(1 - alpha, method="exact")
    limit = float(bounds.low)
    return Criterion(
        name=name,
        met=limit > threshold,
        reason=f"{what}: {good} of {items}, at least {limit:.2f} of such; needed {threshold:g}",
        estimate=good / items,
        limit=limit,
        threshold=threshold,
        items=items,
    )


def _listed(words: Iterable[str]) -> str:
    return ", ".join(f"{count} {word}" for word, count in sorted(Counter(words).items()))
