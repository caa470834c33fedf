"""The Prefect task of the quantize stage, and the task runner that hands its candidates out."""

from collections.abc import Sequence
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.settings import PREFECT_API_URL
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from configs.quantize import ParallelSettings
from configs.schema import Config
from tasks.quantization.fan_out import ScreenJob, ScreenMap, check_parallel, screened_alone
from tasks.quantization.search import quantize
from tasks.release.candidate import Measurement
from tasks.release.conduct import judging_inputs
from tasks.release.stage_memory import remembered_stage
from tasks.release.stage_result import CandidateResult, StageResult
from tasks.release.workspace import Workspace
from tasks.tracking.rollout_run import RolloutRun


@task(name="quantize", cache_policy=NO_CACHE)
def quantize_stage(workspace: Workspace, run: RolloutRun, baseline: Measurement) -> StageResult:
    """Search the declared weight formats and cache types, judge the best, log everything."""
    config = workspace.config
    settings = config.quantize
    if settings is None:
        return run.record(StageResult.skipped("quantize", "the configuration has no quantize section"))
    declared = settings.model_copy(update={"parallel": ParallelSettings()})  # it changes no result
    inputs = [declared, *judging_inputs(config), config.goals, config.requests, config.threads, baseline]
    return run.record(
        remembered_stage(
            workspace,
            "quantize",
            inputs,
            lambda: quantize(workspace, settings, baseline, screen_map(settings.parallel)),
        )
    )


@task(name="screen", cache_policy=NO_CACHE, task_run_name="screen {job.name}")
def screen_candidate(job: ScreenJob) -> CandidateResult:
    """Build and screen one candidate, here or on another machine."""
    return screened_alone(job)


def screen_map(parallel: ParallelSettings) -> ScreenMap | None:
    """What hands candidates out, as configured; None where they go one after another."""
    if parallel.is_serial:
        return None

    def screen_all(jobs: Sequence[ScreenJob]) -> list[CandidateResult]:
        with _runner(parallel) as runner:
            futures = [runner.submit(screen_candidate, {"job": job}) for job in jobs]
            return [future.result() for future in futures]

    return screen_all


def check_runner(config: Config) -> None:
    """Refuse a task runner that cannot work here, before anything runs.

    Raises:
        ConfigError: its package or its Prefect server is missing, or this machine has too few cores.
    """
    if config.quantize is not None:
        check_parallel(config.quantize.parallel, threads=config.threads, server=PREFECT_API_URL.value())


def _runner(parallel: ParallelSettings) -> TaskRunner[Any]:
    runner: TaskRunner[Any]
    match parallel.runner:
        case "threads":
            runner = ThreadPoolTaskRunner(max_workers=parallel.workers)
        case "dask":
            from prefect_dask import DaskTaskRunner

            cluster = {"n_workers": parallel.workers, "threads_per_worker": 1, "dashboard_address": None}
            runner = DaskTaskRunner(
                address=parallel.address, cluster_kwargs=cluster if parallel.is_here else None
            )
        case "ray":
            from prefect_ray import RayTaskRunner

            cluster = {"num_cpus": parallel.workers, "include_dashboard": False}
            runner = RayTaskRunner(
                address=parallel.address, init_kwargs=cluster if parallel.is_here else None
            )
    return runner
