"""The Prefect task of the profile stage."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.profiling.profile import profile
from tasks.release.stage_memory import remembered_stage
from tasks.release.stage_result import StageResult
from tasks.release.workspace import Workspace
from tasks.tracking.rollout_run import RolloutRun


@task(name="profile", cache_policy=NO_CACHE)
def profile_stage(workspace: Workspace, run: RolloutRun) -> StageResult:
    """Measure the source model on the baseline engine."""
    config = workspace.config
    inputs = [config.profile, config.requests, config.threads]
    return run.record(
        remembered_stage(workspace, "profile", inputs, lambda: profile(workspace, config.profile))
    )
