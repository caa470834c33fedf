"""The rollout: profile, quantize, batching, adapt, distill; what passes becomes the release, what does not is rolled back.

Every stage is a Prefect task that returns a `StageResult`; this flow branches on those records and on nothing else. The rules are
pure functions in `tasks/release/decision.py`. What a stage computed is remembered in the store under the digest of everything it
depends on, so a killed rollout that is started again continues, and an unchanged one computes nothing.
"""

import time
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from configs.load import load_config
from tasks.adaptation.task import adapt_stage
from tasks.batching.task import batching_stage
from tasks.distillation.task import distill_stage
from tasks.profiling.task import profile_stage
from tasks.quantization.preflight import preflight
from tasks.quantization.task import check_runner, quantize_stage
from tasks.release import decision
from tasks.release.progress import Progress
from tasks.release.summary import RolloutSummary
from tasks.release.task import abandon_rollout, close_rollout, prepare
from tasks.tracking.rollout_run import RolloutRun


@flow(name="keiryo-rollout", flow_run_name="{config}")
def rollout(config: str, overrides: list[str] | None = None) -> State[dict[str, Any]]:
    """Run one recipe; the state's data is the rollout's summary as JSON values.

    Args:
        config: path of the YAML recipe.
        overrides: settings as `path=value`.
    """
    began_s = time.monotonic()
    settings = load_config(Path(config), overrides or [])
    check_runner(settings)
    workspace = prepare(settings)
    preflight(workspace)
    run = RolloutRun.open(workspace)

    profiled = profile_stage(workspace, run)
    if profiled.verdict == "ERROR":
        return _state(abandon_rollout(workspace, run, profiled, began_s))
    progress = Progress.begin(settings.goals, profiled)
    progress = progress.after(quantize_stage(workspace, run, progress.baseline))
    if progress.going:
        progress = progress.after(
            batching_stage(workspace, run, progress.release, progress.release_is_source)
        )
    if progress.going:
        purpose, why = decision.adaptation_purpose(settings.adapt, progress.missed, progress.challenger)
        start = progress.challenger if purpose == "recovery" and progress.challenger else progress.release
        progress = progress.after(adapt_stage(workspace, run, start, purpose, why))
    if progress.going:
        progress = progress.after(distill_stage(workspace, run, progress.release, progress.missed))

    return _state(close_rollout(workspace, run, progress, began_s))


def _state(summary: RolloutSummary) -> State[dict[str, Any]]:
    """The verdict as Prefect shows it: an honest FAIL is a completed flow with that name, an ERROR a failed one."""
    name, message = f"Gate {summary.verdict}", f"{summary.verdict}: {summary.reason}"
    data = summary.model_dump(mode="json")
    return (Failed if summary.verdict == "ERROR" else Completed)(name=name, message=message, data=data)
