"""The Prefect task of the adapt stage."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.release.candidate import Candidate
from tasks.release.conduct import judging_inputs
from tasks.release.decision import AdaptationPurpose
from tasks.release.stage_memory import remembered_stage
from tasks.release.stage_result import StageResult
from tasks.release.training_data import rows_digest
from tasks.release.workspace import Workspace
from tasks.tracking.rollout_run import RolloutRun


@task(name="adapt", cache_policy=NO_CACHE)
def adapt_stage(
    workspace: Workspace, run: RolloutRun, start: Candidate, purpose: AdaptationPurpose | None, why: str
) -> StageResult:
    """Adapt to data, recover the challenger, or say why neither is called for."""
    config = workspace.config
    settings = config.adapt
    if settings is None or purpose is None:
        return run.record(StageResult.skipped("adapt", why))

    def compute() -> StageResult:
        # torch and peft take seconds to import; a remembered stage must not pay for them
        from tasks.adaptation.adapt import adapt_to_data
        from tasks.adaptation.recovered_challenger import recover_challenger

        return (adapt_to_data if purpose == "data" else recover_challenger)(workspace, settings, start)

    inputs = [
        settings,
        rows_digest(workspace),
        purpose,
        start,
        *judging_inputs(config),
        config.requests,
        config.threads,
    ]
    return run.record(remembered_stage(workspace, "adapt", inputs, compute))
