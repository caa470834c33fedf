"""The Prefect task of the batching stage."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.batching.speculative_stage import speculation_inputs, with_speculation
from tasks.batching.tune import tune_batching
from tasks.release.candidate import Candidate
from tasks.release.conduct import judging_inputs
from tasks.release.stage_memory import remembered_stage
from tasks.release.stage_result import StageResult
from tasks.release.workspace import Workspace
from tasks.serving.workload import load_inputs
from tasks.tracking.rollout_run import RolloutRun


@task(name="batching", cache_policy=NO_CACHE)
def batching_stage(
    workspace: Workspace, run: RolloutRun, release: Candidate, release_is_source: bool
) -> StageResult:
    """Tune the scheduler of the release, then try speculation on what is kept."""
    config = workspace.config
    settings = config.batching
    if settings is None:
        return run.record(StageResult.skipped("batching", "the configuration has no batching section"))
    if release_is_source:
        return run.record(
            StageResult.skipped("batching", "no candidate has passed; the baseline serves one after another")
        )
    drafts = speculation_inputs(workspace, settings, release)
    inputs = [settings, release, *judging_inputs(config), config.requests, config.goals.max_peak_mib, config.threads,
              *load_inputs(config.load), *drafts]  # fmt: skip
    return run.record(
        remembered_stage(
            workspace,
            "batching",
            inputs,
            lambda: with_speculation(
                workspace, settings, release, tune_batching(workspace, settings, release)
            ),
        )
    )
