"""The Prefect task of the distill stage."""

from collections.abc import Sequence

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.release.candidate import Candidate
from tasks.release.conduct import judging_inputs
from tasks.release.stage_memory import remembered_stage
from tasks.release.stage_result import StageResult
from tasks.release.workspace import Workspace
from tasks.tracking.rollout_run import RolloutRun


@task(name="distill", cache_policy=NO_CACHE)
def distill_stage(
    workspace: Workspace, run: RolloutRun, release: Candidate, missed: Sequence[str]
) -> StageResult:
    """Train a student if the release still misses a goal."""
    config = workspace.config
    settings = config.distill
    if settings is None:
        return run.record(StageResult.skipped("distill", "the configuration has no distill section"))
    if not missed:
        return run.record(StageResult.skipped("distill", "the release meets every goal"))

    def compute() -> StageResult:
        # torch takes seconds to import; a remembered stage must not pay for it
        from tasks.distillation.stage import distill_student

        return distill_student(workspace, settings, release)

    inputs = [settings, release, *judging_inputs(config), config.requests, config.threads]
    return run.record(remembered_stage(workspace, "distill", inputs, compute))
