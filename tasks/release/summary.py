"""What `keiryo run`, `show` and `compare` print: one rollout as a record, and two side by side."""

from collections.abc import Sequence
from typing import Literal

from tasks.quality.verdict import VerdictName
from tasks.release.metrics import stage_metrics
from tasks.release.stage_result import StageName, StageResult
from tasks.store.record import Record

EXIT_CODES: dict[VerdictName, int] = {"PASS": 0, "ERROR": 1, "FAIL": 3, "INCONCLUSIVE": 4}


class StageSummary(Record):
    """One stage, as `show --json` prints it.

    Attributes:
        stage: which.
        verdict: its outcome.
        kept: whether its proposal became the release.
        engine: engine of the proposal; None when it had none.
        artifact: address of the proposal's artifact; None when it had none.
        seconds: wall time when it was computed.
        cached: whether this run found it in the store.
        metrics: figures under the names of the MLflow contract.
        reason: one line.
    """

    stage: StageName
    verdict: VerdictName
    kept: bool
    engine: str | None
    artifact: str | None
    seconds: float
    cached: bool
    metrics: dict[str, float]
    reason: str


class ReleaseSummary(Record):
    """What was released: registered name, version and the artifact's address."""

    name: str
    version: int
    artifact: str


class RolloutSummary(Record):
    """One rollout.

    Attributes:
        run_id: MLflow's id of the parent run.
        config: name of the recipe.
        verdict: of the whole.
        exit_code: of the command.
        reason: one line, why the verdict is what it is.
        model: name of the source model.
        stages: in the order they ran.
        release: None when nothing was released.
        report: path or address of the HTML report; None when none was written.
        seconds: wall time of this run.
    """

    run_id: str
    config: str
    verdict: VerdictName
    exit_code: int
    reason: str = ""
    model: str
    stages: tuple[StageSummary, ...]
    release: ReleaseSummary | None
    report: str | None
    seconds: float


class MetricComparison(Record):
    """One metric of two stages.

    Attributes:
        stage: the stage of both runs, or "a -> b".
        metric: name of the contract.
        first: value in the first run; None where it has none.
        second: value in the second run; None where it has none.
        ratio: second / first where both are positive, else None.
        first_interval: (low, high) of the difference from the source, where the gate drew one.
        second_interval: the same for the second run.
    """

    stage: str
    metric: str
    first: float | None
    second: float | None
    ratio: float | None
    first_interval: tuple[float, float] | None = None
    second_interval: tuple[float, float] | None = None


def summarize_stage(result: StageResult) -> StageSummary:
    """The summary of one stage result."""
    proposal = result.proposal
    return StageSummary(
        stage=result.stage,
        verdict=result.verdict,
        kept=result.kept,
        engine=proposal.engine.engine if proposal else None,
        artifact=proposal.artifact if proposal else None,
        seconds=result.seconds,
        cached=result.cached,
        metrics=stage_metrics(result),
        reason=result.reason,
    )


def summarize(
    run_id: str,
    config: str,
    model: str,
    verdict: Literal["PASS", "FAIL", "INCONCLUSIVE", "ERROR"],
    reason: str,
    results: Sequence[StageResult],
    release: ReleaseSummary | None,
    report: str | None,
    seconds: float,
) -> RolloutSummary:
    """The summary of a rollout; the verdict decides the exit code."""
    return RolloutSummary(
        run_id=run_id,
        config=config,
        verdict=verdict,
        exit_code=EXIT_CODES[verdict],
        reason=reason,
        model=model,
        stages=tuple(summarize_stage(result) for result in results),
        release=release,
        report=report,
        seconds=seconds,
    )


def compare_runs(first: RolloutSummary, second: RolloutSummary) -> tuple[MetricComparison, ...]:
    """Stage by stage, in the order of the first run; a stage that one of them lacks is None there."""
    mine, other = ({stage.stage: stage for stage in run.stages} for run in (first, second))
    names = [*mine, *(name for name in other if name not in mine)]
    return tuple(row for name in names for row in _compare(name, mine.get(name), other.get(name)))


def compare_stages(first: StageSummary, second: StageSummary) -> tuple[MetricComparison, ...]:
    """Two stages of one run, or of two."""
    return _compare(f"{first.stage} -> {second.stage}", first, second)


def _compare(
    label: str, first: StageSummary | None, second: StageSummary | None
) -> tuple[MetricComparison, ...]:
    mine, other = (stage.metrics if stage else {} for stage in (first, second))
    names = sorted(mine.keys() | other.keys())
    return tuple(
        MetricComparison(
            stage=label,
            metric=name,
            first=mine.get(name),
            second=other.get(name),
            ratio=_ratio(mine.get(name), other.get(name)),
            first_interval=_interval(mine, name),
            second_interval=_interval(other, name),
        )
        for name in names
        if not name.endswith(("_ci_low", "_ci_high"))
    )


def _ratio(first: float | None, second: float | None) -> float | None:
    return second / first if first is not None and second is not None and first > 0 and second > 0 else None


def _interval(metrics: dict[str, float], name: str) -> tuple[float, float] | None:
    stem = name.removesuffix("_delta")
    low, high = metrics.get(f"{stem}_ci_low"), metrics.get(f"{stem}_ci_high")
    return None if low is None or high is None else (low, high)
