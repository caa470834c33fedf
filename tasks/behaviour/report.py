"""Two models' answers compared: the drift of every check, and the prompts that changed most."""

import math
from collections.abc import Callable
from pathlib import Path

from configs.behaviour import BehaviourSettings
from tasks.behaviour.answers import Answers, answers_of, check_comparable
from tasks.behaviour.drift import CheckDrift, Verdict, drift_of
from tasks.behaviour.error import BehaviourError
from tasks.behaviour.prompts import prompts_of
from tasks.behaviour.rows import PromptRow, paired_values, row_of
from tasks.engines.protocol import Engine
from tasks.quality.intervals import TooFewClusters
from tasks.store.record import Record


class BehaviourReport(Record):
    """How the candidate behaves beside the source.

    Attributes:
        source: name of the source model.
        candidate: name of the candidate.
        prompts_digest: of the prompts that both answered.
        alpha: one-sided level, after the correction for tries.
        verdict: PASS if every check with a margin passes, FAIL if one fails; None where no margin is set.
        reason: one line.
        checks: one a check.
        rows: one a prompt; those that changed most come first.
    """

    source: str
    candidate: str
    prompts_digest: str
    alpha: float
    verdict: Verdict | None
    reason: str
    checks: tuple[CheckDrift, ...]
    rows: tuple[PromptRow, ...]


def run_behaviour(
    open_source: Callable[[], Engine],
    open_candidate: Callable[[], Engine],
    tokenizer_folder: Path,
    settings: BehaviourSettings,
    *,
    source_name: str = "source",
    candidate_name: str = "candidate",
    tries: int = 1,
) -> BehaviourReport:
    """Ask both models and compare; each engine is opened, asked and closed before the next is opened.

    Args:
        open_source: opens the source's engine.
        open_candidate: opens the candidate's engine.
        tokenizer_folder: tokenizer (and chat template) of both models.
        settings: prompts, limits and margins.
        source_name: for people.
        candidate_name: for people.
        tries: candidates that may be judged on these prompts; each at alpha / tries.

    Raises:
        BehaviourError: the prompts are bad, or carry no interval.
        EngineError: an engine failed.
    """
    prompts = prompts_of(settings)
    with open_source() as engine:
        source = answers_of(engine, tokenizer_folder, settings, model=source_name, prompts=prompts)
    with open_candidate() as engine:
        candidate = answers_of(engine, tokenizer_folder, settings, model=candidate_name, prompts=prompts)
    return compare_answers(source, candidate, settings, tries=tries)


def compare_answers(
    source: Answers, candidate: Answers, settings: BehaviourSettings, *, tries: int = 1
) -> BehaviourReport:
    """The drift of every check between two models' answers to the same prompts.

    All checks with a margin must pass for a PASS, each at alpha / tries; any one beyond it makes a FAIL, at
    alpha / tries over their number, as in the quality gate.

    Raises:
        BehaviourError: the answers do not belong together, or carry no interval.
    """
    check_comparable(source, candidate)
    rows = tuple(
        row_of(prompt, before, after, settings)
        for prompt, before, after in zip(source.prompts, source.rows, candidate.rows, strict=True)
    )
    values = paired_values(rows, settings)
    gated = sum(each.margin is not None for each in values)
    alpha = settings.alpha / tries
    try:
        checks = tuple(drift_of(each, alpha=alpha, alpha_fail=alpha / max(gated, 1)) for each in values)
    except TooFewClusters as error:
        raise BehaviourError(f"behaviour.prompts: {error}") from error
    verdict, reason = _verdict(checks)
    return BehaviourReport(
        source=source.model,
        candidate=candidate.model,
        prompts_digest=source.prompts_digest,
        alpha=alpha,
        verdict=verdict,
        reason=reason,
        checks=checks,
        rows=tuple(sorted(rows, key=lambda row: (-row.change, row.prompt_id))),
    )


def describe(check: CheckDrift) -> str:
    """One check in words."""
    name = check.check.replace("_", " ")
    if check.unit == "log ratio":
        factors = [math.exp(x) for x in (check.drift.estimate, check.drift.low, check.drift.high)]
        words = f"{name} x {factors[0]:.2f} ({factors[1]:.2f} to {factors[2]:.2f}"
        limit = None if check.margin is None else f"{math.exp(check.margin):.2f}"
    else:
        points = [100 * x for x in (check.drift.estimate, check.drift.low, check.drift.high)]
        words = f"{name} {points[0]:+.1f} points ({points[1]:+.1f} to {points[2]:+.1f}"
        limit = None if check.margin is None else f"{100 * check.margin:g}"
    return f"{words})" if limit is None else f"{words}, margin {limit})"


def _verdict(checks: tuple[CheckDrift, ...]) -> tuple[Verdict | None, str]:
    gated = [check for check in checks if check.verdict is not None]
    if not gated:
        return None, "no margin is set in behaviour.margins; the drift is reported only"
    names: tuple[Verdict, ...] = ("FAIL", "INCONCLUSIVE", "PASS")
    verdict = next(name for name in names if any(check.verdict == name for check in gated))
    decided = [check for check in gated if check.verdict == verdict]
    words = {"FAIL": "beyond the margin", "INCONCLUSIVE": "undecided", "PASS": "within the margin"}[verdict]
    return verdict, f"{len(decided)} of {len(gated)} checks {words}: {'; '.join(map(describe, decided))}"
