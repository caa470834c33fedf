"""What is said of a candidate: its screen on the search split, its verdict on the gate split, its held-out loss.

The text is scored first, then every task at its first look; a task that is undecided draws more items until its plan ends. What is
proven ends the scoring: a FAIL of the text asks no task, because nothing could turn it into a PASS; nor does a text in doubt, where
drawing stops for futility.
"""

import math
from typing import Literal

import numpy as np
from pydantic import Field

from configs.quality import Margins
from tasks.quality.gate import TEXT, Improvement, improvement, judge
from tasks.quality.intervals import text_limits
from tasks.quality.planning import plan_tasks
from tasks.quality.sample_set import joined_samples, samples_of
from tasks.quality.samples import Samples
from tasks.quality.sequential import LookLevels
from tasks.quality.verdict import GateVerdict, VerdictName
from tasks.release.candidate import Candidate
from tasks.release.conduct import examine, worse
from tasks.release.gate_tasks import judged_tasks
from tasks.release.noise_probe import check_noise, noise_metrics
from tasks.release.scoring import CandidateScores, remember
from tasks.release.workspace import Workspace
from tasks.store.record import Record

GateKind = Literal["preserve", "tasks"]


def screen_candidate(workspace: Workspace, candidate: Candidate) -> dict[str, float]:
    """Perplexity and KL on the search split, KL with its 95 % interval over sections: cheap, never judged on.

    Raises:
        EngineError: it does not work.
        QualityError: the scores would not be honest.
    """
    with CandidateScores(workspace, None, "search") as source:
        before, _ = _totals(source.text(), "perplexity")
    with CandidateScores(workspace, candidate, "search") as scores:
        scored = scores.text()
    loss, tokens = _totals(scored, "perplexity")
    return {
        "kl_nats": _totals(scored, "kl")[0] / tokens,
        **_kl_interval(scored),
        "perplexity_delta_fraction": math.expm1((loss - before) / tokens),
        "flip_rate": _totals(scored, "flips")[0] / tokens,
    }


def _kl_interval(scored: Samples) -> dict[str, float]:
    """For the eye, with a few sections only: the gate has its own. Nothing of one section, or where nothing diverged."""
    rows = [row for row in scored.rows if row.metric == "kl"]
    values, weights = np.array([[row.value, row.weight] for row in rows]).T
    if len(rows) < 2 or not values.any():
        return {}
    low, high = text_limits(values, weights, 0.025, skewed=True)
    return {"kl_nats_ci_low": max(float(low), 0.0), "kl_nats_ci_high": float(high)}


class Judgement(Record):
    """What was decided about a candidate's quality, and on what.

    Attributes:
        verdict: PASS only where the gate says so, and nothing in the answers against it.
        reason: one line.
        gate: the verdict on text and tasks.
        samples: keys of the samples behind the gate, by role.
        metrics: further figures under their MLflow names.
        text: tables for the reader, by file name.
        provisional: not to be remembered: a judge could not be asked.
    """

    verdict: VerdictName
    reason: str
    gate: GateVerdict
    samples: dict[str, str]
    metrics: dict[str, float] = Field(default_factory=dict)
    text: dict[str, str] = Field(default_factory=dict)
    provisional: bool = False


def judge_candidate(workspace: Workspace, candidate: Candidate, kind: GateKind) -> Judgement:
    """The verdict on a candidate, against the source model at full precision: the gate, then its answers.

    Args:
        workspace: of the rollout.
        candidate: what is proposed.
        kind: "preserve" gates perplexity, KL and accuracy; "tasks", for a model that was changed on purpose, accuracy alone.

    Raises:
        EngineError: an engine does not work.
        QualityError: the scores would not be honest.
        MarginBelowNoise: a margin lies within what the batch size alone changes.
        BehaviourError, LabelError: the prompts or labels cannot be used.
    """
    margins = workspace.config.quality.judged(kind)
    with CandidateScores(workspace, candidate, "gate") as changed:
        gate, keys = _gate(workspace, changed, margins)
        if gate.verdict != "PASS":
            return Judgement(verdict=gate.verdict, reason=gate.reason, gate=gate, samples=keys)
        floors = check_noise(workspace, candidate, margins, keys["candidate"], changed.open_again)
    conduct = examine(workspace, candidate)
    return Judgement(
        verdict=worse(gate.verdict, conduct.verdict) or gate.verdict,
        reason="; ".join(filter(None, (gate.reason, conduct.reason))),
        gate=gate,
        samples=keys,
        metrics=conduct.metrics | noise_metrics(floors),
        text=conduct.text,
        provisional=conduct.provisional,
    )


def _gate(
    workspace: Workspace, changed: CandidateScores, margins: Margins
) -> tuple[GateVerdict, dict[str, str]]:
    """The gate's verdict, and the keys of the samples behind it by role."""
    quality = workspace.config.quality
    tasks = judged_tasks(workspace)
    expected = (*tasks, TEXT)
    looks = {
        name: LookLevels(plan=plan, look=1) for name, plan in plan_tasks(quality, margins, tasks).items()
    }
    with CandidateScores(workspace, None, "gate") as source:
        parts = {TEXT: (source.text(), changed.text())}
        while True:
            before, after = (joined_samples(part[side] for part in parts.values()) for side in (0, 1))
            verdict = judge(
                before,
                after,
                margins,
                alpha=quality.alpha,
                tries=quality.tries,
                looks=looks,
                expected=expected,
            )
            if verdict.settled:
                break
            for name in verdict.undecided:
                plan, look = looks[name].plan, looks[name].look + (name in parts)
                looks[name] = LookLevels(plan=plan, look=look)
                items, judged = plan.items[look - 1], plan.items[look - 2] if look > 1 else 0
                parts[name] = (source.task(name, items, judged), changed.task(name, items, judged))
    return verdict, {"reference": remember(workspace, before), "candidate": remember(workspace, after)}


def held_out_gain(workspace: Workspace, before: Candidate | None, after: Candidate) -> Improvement:
    """How the loss on the gate text changed from one candidate (None: the source) to another, each as it would be served.

    Raises:
        EngineError: an engine does not work.
        QualityError, SampleError: the scores would not be honest.
    """
    losses = []
    for candidate in (before, after):
        with CandidateScores(workspace, candidate, "gate") as scores:
            losses.append(samples_of(row for row in scores.text().rows if row.metric == "perplexity"))
    return improvement(*losses)


def gain_metrics(gain: Improvement, of: str = "") -> dict[str, float]:
    """A gain under the names of the MLflow contract, after "quality/" or "train/"."""
    name = f"{of}_held_out_loss_delta_nats" if of else "held_out_loss_delta_nats"
    return {name: gain.loss_change_nats, f"{name}_ci_low": gain.ci_low, f"{name}_ci_high": gain.ci_high}


def describe_gain(gain: Improvement) -> str:
    """A gain in words."""
    return f"{gain.loss_change_nats:+.3f} nats a token ({gain.ci_low:+.3f} to {gain.ci_high:+.3f})"


def _totals(scored: Samples, metric: str) -> tuple[float, float]:
    rows = [row for row in scored.rows if row.metric == metric]
    return sum(row.value for row in rows), sum(row.weight for row in rows)
