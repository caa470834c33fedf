"""What a stage says to the flow: the record it branches on and tracking logs."""

from typing import Literal

from pydantic import Field

from tasks.quality.verdict import GateVerdict, VerdictName
from tasks.release.candidate import Candidate, Measurement
from tasks.serving.load_record import LoadComparison
from tasks.store.record import Record

StageName = Literal["profile", "quantize", "batching", "adapt", "distill"]


class CandidateResult(Record):
    """One candidate that a stage looked at.

    Attributes:
        candidate: what was tried; None when it could not be built.
        name: its name, also when it could not be built.
        measurement: None when it failed before it could be measured.
        screen: cheap quality figures on the search split, by metric name ("kl_nats", "perplexity_delta_fraction", ...).
        error: why it failed, one line; None when it did not.
        pair_ratio: its speed (one stream and all in flight, geometric mean) over that of the candidate whose own measurement was the
            best, median of interleaved pairs; None where they did not meet.
        unpaired: why they could not, one line; None where they met or had no need to.
        dropped: why it was given up before it was measured; None where it was not.
        judged: the gate's verdict on it, where it was judged.
        reason: of that verdict, one line.
        metrics: further figures under their MLflow names: what it took to build, how it agrees with its source.
        sensitivity: nats a token that each linear layer is predicted to lose at 4 bits, by name, where its build measured that.
    """

    name: str
    candidate: Candidate | None
    measurement: Measurement | None
    screen: dict[str, float] = Field(default_factory=dict)
    error: str | None = None
    pair_ratio: float | None = None
    unpaired: str | None = None
    dropped: str | None = None
    judged: VerdictName | None = None
    reason: str = ""
    metrics: dict[str, float] = Field(default_factory=dict)
    sensitivity: dict[str, float] = Field(default_factory=dict)


class StageResult(Record):
    """One stage of one rollout.

    Attributes:
        stage: which.
        verdict: the stage's outcome; SKIPPED when the design's rule did not call for it.
        kept: whether its proposal became the release.
        reason: one line, always.
        proposal: the candidate it proposes; None when it has none.
        measurement: of the proposal.
        gate: the quality verdict on the proposal; None when nothing was judged.
        candidates: everything it tried.
        samples: per-sample results behind the gate, by role ("reference", "candidate"): their keys in the store.
        metrics: further figures under their MLflow names.
        text: figures and tables for the reader, by file name (logged as text artifacts).
        artifacts: what else it made that a reader may want whole, by name: digests in the store.
        load: what was served under the configured load, before and after; None where there is no load.
        provisional: not to be remembered: something outside, like a judge's endpoint, did not answer.
        seconds: wall time when it was computed.
        cached: whether this run found it in the store.
    """

    stage: StageName
    verdict: VerdictName
    kept: bool
    reason: str
    proposal: Candidate | None = None
    measurement: Measurement | None = None
    gate: GateVerdict | None = None
    candidates: tuple[CandidateResult, ...] = ()
    samples: dict[str, str] = Field(default_factory=dict)
    metrics: dict[str, float] = Field(default_factory=dict)
    text: dict[str, str] = Field(default_factory=dict)
    artifacts: dict[str, str] = Field(default_factory=dict)
    load: LoadComparison | None = None
    provisional: bool = False
    seconds: float = 0.0
    cached: bool = False

    @classmethod
    def skipped(cls, stage: StageName, reason: str) -> "StageResult":
        """A stage that the rules did not call for."""
        return cls(stage=stage, verdict="SKIPPED", kept=False, reason=reason)
