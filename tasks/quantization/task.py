"""The Prefect task of the quantize stage."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.quantization.search import quantize
from tasks.release.candidate import Measurement
from tasks.release.conduct import judging_inputs
from tasks.release.stage_memory import remembered_stage
from tasks.release.stage_result import StageResult
from tasks.release.workspace import Workspace
from tasks.tracking.rollout_run import RolloutRun


@task(name="quantize", cache_policy=NO_CACHE)
def quantize_stage(workspace: Workspace, run: RolloutRun, baseline: Measurement) -> StageResult:
    """Search the declared weight formats and cache types, judge the best, log everything."""
    config = workspace.config
    settings = config.quantize
    if settings is None:
        return run.record(StageResult.skipped("quantize", "the configuration has no quantize section"))
    inputs = [settings, *judging_inputs(config), config.goals, config.requests, config.threads, baseline]
    return run.record(
        remembered_stage(workspace, "quantize", inputs, lambda: quantize(workspace, settings, baseline))
    )
