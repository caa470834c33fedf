"""The Prefect tasks around the stages: the preparation before them, the closing after them."""

import logging
import time

from prefect import task
from prefect.cache_policies import NO_CACHE

from configs.schema import Config
from tasks.profiling.environment import environment
from tasks.release.closing import close_ledger, proven_misses
from tasks.release.decision import RolloutVerdict, overall
from tasks.release.evidence import Evidence
from tasks.release.ledger import Ledger
from tasks.release.preparation import make_workspace
from tasks.release.progress import Progress
from tasks.release.stage_memory import STAGE_FAILURES
from tasks.release.stage_result import StageResult
from tasks.release.summary import ReleaseSummary, RolloutSummary, summarize
from tasks.release.workspace import Workspace
from tasks.report.figures import draw_figures
from tasks.report.html import render_report
from tasks.tracking.rollout_run import RolloutRun

logger = logging.getLogger(__name__)


@task(name="prepare", cache_policy=NO_CACHE)
def prepare(config: Config) -> Workspace:
    """Acquire the model, split the text, write the tasks."""
    return make_workspace(config)


@task(name="close", cache_policy=NO_CACHE)
def close_rollout(
    workspace: Workspace, run: RolloutRun, progress: Progress, began_s: float
) -> RolloutSummary:
    """Measure every kept stage once more, decide the whole, move the champion, write the report.

    Args:
        workspace: of the rollout.
        run: its place in MLflow.
        progress: after the last stage.
        began_s: `time.monotonic()` when the rollout began.
    """
    verdict, reason, ledger = _decide(workspace, progress)
    release: ReleaseSummary | None = None
    if verdict == "PASS" and not progress.release_is_source:
        version = run.promote(progress.kept[-1], reason)
        release = ReleaseSummary(
            name=version.model, version=version.version, artifact=version.candidate.artifact
        )
    return _write_up(workspace, run, progress.results, (verdict, reason), release, ledger, began_s)


@task(name="abandon", cache_policy=NO_CACHE)
def abandon_rollout(
    workspace: Workspace, run: RolloutRun, profile: StageResult, began_s: float
) -> RolloutSummary:
    """Close a rollout whose source could not be measured: ERROR, with a report that says why."""
    return _write_up(workspace, run, (profile,), ("ERROR", f"profile: {profile.reason}"), None, None, began_s)


def _decide(workspace: Workspace, progress: Progress) -> tuple[RolloutVerdict, str, Ledger | None]:
    verdict, reason = overall(progress.results, not progress.release_is_source, ())
    if verdict == "ERROR":
        return verdict, reason, None
    try:
        ledger, _ = close_ledger(workspace, progress.kept)
    except STAGE_FAILURES as error:
        logger.exception("the closing measurement failed")
        return "ERROR", f"closing measurement: {type(error).__name__}: {' '.join(str(error).split())}", None
    missed = proven_misses(progress.goals, progress.release_measurement, progress.baseline, ledger)
    return *overall(progress.results, not progress.release_is_source, missed), ledger


def _write_up(
    workspace: Workspace,
    run: RolloutRun,
    results: tuple[StageResult, ...],
    decided: tuple[RolloutVerdict, str],
    release: ReleaseSummary | None,
    ledger: Ledger | None,
    began_s: float,
) -> RolloutSummary:
    path = workspace.store.home / "reports" / f"{workspace.config.name}-{run.run_id[:8]}.html"
    summary = summarize(
        run.run_id, workspace.config.name, workspace.config.model.name, *decided, results, release,
        str(path), time.monotonic() - began_s,
    )  # fmt: skip
    evidence = Evidence(
        config=workspace.config, summary=summary, results=results, ledger=ledger, environment=environment()
    )
    figures = draw_figures(evidence)
    html = render_report(evidence, figures, run.changed_most())
    path.parent.mkdir(exist_ok=True)
    path.write_text(html, encoding="utf-8")
    run.close(evidence, html, figures)
    return summary
