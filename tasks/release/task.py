"""The Prefect tasks around the stages: the preparation before them, the closing after them."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from prefect import task
from prefect.cache_policies import NO_CACHE

from configs.schema import Config
from tasks.profiling.environment import environment
from tasks.release.closing import close_ledger, proven_misses
from tasks.release.decision import overall
from tasks.release.evidence import Evidence
from tasks.release.ledger import Ledger
from tasks.release.preparation import make_workspace
from tasks.release.progress import Progress
from tasks.release.stage_memory import STAGE_FAILURES
from tasks.release.summary import ReleaseSummary, RolloutSummary, summarize
from tasks.release.workspace import Workspace
from tasks.report.html import render_report
from tasks.tracking.rollout_run import RolloutRun

logger = logging.getLogger(__name__)


@task(name="prepare", cache_policy=NO_CACHE)
def prepare(config: Config) -> Workspace:
    """Acquire the model, split the text, write the tasks."""
    return make_workspace(config)


@task(name="close", cache_policy=NO_CACHE)
def close_rollout(workspace: Workspace, run: RolloutRun, progress: Progress, seconds: float) -> RolloutSummary:
    """Measure every kept stage once more, decide the whole, move the champion, write the report."""
    verdict, reason = overall(progress.results, not progress.release_is_source, progress.missed)
    ledger: Ledger | None = None
    if verdict != "ERROR":
        try:
            ledger, _ = close_ledger(workspace, progress.kept)
        except STAGE_FAILURES as error:
            logger.exception("the closing measurement failed")
            verdict, reason = "ERROR", f"closing measurement: {type(error).__name__}: {error}"
        else:
            missed = proven_misses(progress.goals, progress.release_measurement, progress.baseline, ledger)
            verdict, reason = overall(progress.results, not progress.release_is_source, missed)
    release = run.promote(progress.kept[-1]) if verdict == "PASS" and not progress.release_is_source else None
    return write_up(workspace, run, progress, verdict, reason, ledger, release, seconds)
