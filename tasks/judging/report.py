"""A judge is calibrated on the day's prompts, and votes on the candidate if it passes."""

from datetime import date
from pathlib import Path
from typing import Literal

from configs.behaviour import JudgeSettings
from tasks.behaviour.answers import Answers, check_comparable
from tasks.behaviour.drift import Verdict, verdict_of
from tasks.behaviour.prompts import Prompt
from tasks.judging.both_orders import Outcome, judge_pairs
from tasks.judging.calibration import (
    Criterion,
    ProbeResult,
    consistency_criterion,
    family_criterion,
    human_criterion,
    position_criterion,
    probe_criterion,
)
from tasks.judging.error import JudgeError
from tasks.judging.human_labels import agreement, read_labels
from tasks.judging.judge import Comparison, Judge
from tasks.judging.probes import drawn_from_clusters, probes_of
from tasks.quality.intervals import Interval, accuracy_interval
from tasks.store.record import Record

Result = Literal["win", "tie", "loss", "inconsistent", "unparsable"]

_RESULTS: dict[Outcome, Result] = {
    "first": "loss",
    "second": "win",
    "tie": "tie",
    "inconsistent": "inconsistent",
    "unparsable": "unparsable",
}


class JudgedPair(Record):
    """One prompt: who won, as the candidate sees it; "inconsistent" and "unparsable" count as ties."""

    prompt_id: str
    result: Result


class JudgeReport(Record):
    """What a judge showed, and what it said if it may say anything.

    Attributes:
        judge: its name.
        source: name of the source model.
        candidate: name of the candidate.
        day: the day of the calibration: a vote is of that day and is not to be reused on another.
        prompts_digest: of the prompts it was calibrated on.
        may_vote: it met every criterion.
        reasons: why it has no vote; empty where it has one.
        criteria: each demand with its figures.
        probes: each known-answer probe and the outcome.
        pairs: each judged prompt, where the judge got so far.
        wins: pairs that the candidate won in both orders.
        ties: pairs without a preference, identical answers and inconsistent replies among them.
        losses: pairs that the candidate lost in both orders.
        loss_rate: share lost minus share won, with its two-sided 1 - 2 alpha interval; None without a vote.
        margin: the largest loss rate allowed.
        verdict: PASS when the interval lies below the margin, FAIL when above; None without a vote.
    """

    judge: str
    source: str
    candidate: str
    day: date
    prompts_digest: str
    may_vote: bool
    reasons: tuple[str, ...]
    criteria: tuple[Criterion, ...] = ()
    probes: tuple[ProbeResult, ...] = ()
    pairs: tuple[JudgedPair, ...] = ()
    wins: int = 0
    ties: int = 0
    losses: int = 0
    loss_rate: Interval | None = None
    margin: float
    verdict: Verdict | None = None


def run_judge(
    judge: Judge,
    prompts: tuple[Prompt, ...],
    source: Answers,
    candidate: Answers,
    settings: JudgeSettings,
    *,
    judged_families: frozenset[str],
    day: date,
    tries: int = 1,
) -> JudgeReport:
    """Calibrate a judge and, if it passes, let it compare the answers.

    The pairs are asked about only once everything else is met. A judge that cannot be asked is reported, without a vote.

    Args:
        judge: ready to be asked.
        prompts: the day's prompts; those that both models answered.
        source: the source's answers.
        candidate: the candidate's.
        settings: rubric, thresholds and margin.
        judged_families: of the judged model (`tasks.judging.family`).
        day: today.
        tries: candidates that may be judged on these prompts; each at alpha / tries.

    Raises:
        BehaviourError: the answers do not belong together.
        LabelError: the file of human labels is bad.
        TooFewClusters: the prompts do not carry the interval; `prompts_of` refuses such.
    """
    check_comparable(source, candidate, prompts)
    report = JudgeReport(
        judge=judge.name,
        source=source.model,
        candidate=candidate.model,
        day=day,
        prompts_digest=source.prompts_digest,
        may_vote=False,
        reasons=(),
        margin=settings.max_loss_rate_margin,
    )
    try:
        report = _calibrated(judge, source, settings, judged_families, report)
        if not report.reasons:
            report = _voted(judge, source, candidate, settings, tries, report)
    except JudgeError as error:
        report = report.model_copy(update={"reasons": (str(error),)})
    return report


def _calibrated(
    judge: Judge, source: Answers, settings: JudgeSettings, judged: frozenset[str], report: JudgeReport
) -> JudgeReport:
    """Everything that needs no pair of the two models."""
    calibration, rubric = settings.calibration, settings.rubric
    labels = read_labels(Path(calibration.human_labels)) if calibration.human_labels else ()
    criteria = [family_criterion(judge.families, judged)]
    probes = probes_of(source, calibration.probes, settings.seed)
    outcomes = judge_pairs(judge, [probe.comparison(rubric) for probe in probes])
    results = tuple(ProbeResult(probe=p, outcome=o) for p, o in zip(probes, outcomes, strict=True))
    criteria.append(probe_criterion(results, calibration))
    same = drawn_from_clusters(source, [i for i, row in enumerate(source.rows) if row.text], settings.seed)
    same = same[: calibration.identical]
    replies = judge.compare([_pair(rubric, source, source, i) for i in same])
    criteria.append(position_criterion(replies, calibration))
    if labels:
        said = judge_pairs(judge, [label.comparison(rubric) for label in labels])
        found = agreement([label.label for label in labels], said, calibration.alpha)
        criteria.append(human_criterion(found, calibration))
    return report.model_copy(
        update={"criteria": tuple(criteria), "probes": results, "reasons": _unmet(criteria)}
    )


def _voted(
    judge: Judge,
    source: Answers,
    candidate: Answers,
    settings: JudgeSettings,
    tries: int,
    report: JudgeReport,
) -> JudgeReport:
    """The pairs, the last criterion, and the vote."""
    outcomes: list[Outcome] = ["tie"] * len(source.rows)
    differ = [i for i, row in enumerate(source.rows) if row.text != candidate.rows[i].text]
    asked = judge_pairs(judge, [_pair(settings.rubric, source, candidate, i) for i in differ])
    for i, outcome in zip(differ, asked, strict=True):
        outcomes[i] = outcome
    results = [_RESULTS[outcome] for outcome in outcomes]
    criteria = (*report.criteria, consistency_criterion(asked, settings.calibration))
    wins, losses = results.count("win"), results.count("loss")
    told = report.model_copy(
        update={
            "criteria": criteria,
            "pairs": tuple(
                JudgedPair(prompt_id=p.id, result=r) for p, r in zip(source.prompts, results, strict=True)
            ),
            "wins": wins,
            "losses": losses,
            "ties": len(results) - wins - losses,
            "reasons": _unmet(criteria),
        }
    )
    if told.reasons:
        return told
    values = [{"loss": 1.0, "win": -1.0}.get(result, 0.0) for result in results]
    interval = accuracy_interval(
        values, [prompt.cluster for prompt in source.prompts], alpha=settings.alpha / tries
    )
    verdict = verdict_of(interval, interval, settings.max_loss_rate_margin, "growth")
    return told.model_copy(update={"may_vote": True, "loss_rate": interval, "verdict": verdict})


def _pair(rubric: str, first: Answers, second: Answers, i: int) -> Comparison:
    return Comparison(rubric, first.prompts[i].transcript, first.rows[i].text, second.rows[i].text)


def _unmet(criteria: tuple[Criterion, ...] | list[Criterion]) -> tuple[str, ...]:
    return tuple(f"{criterion.name}: {criterion.reason}" for criterion in criteria if not criterion.met)
