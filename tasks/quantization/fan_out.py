"""Candidates built and screened side by side, each in a process of its own, handed out by whatever task runner the stage was given.

A build changes state of its whole process (patched models, redirected output, warning filters) and its memory is measured as the
process's growth, so two of them never share one. What runs in parallel is what needs no quiet machine: builds and screens. Speed and
memory are measured afterwards by the rollout's own process, one candidate at a time; a lock in the store keeps the builds of another
rollout away from them.

    screened_alone(job) -> CandidateResult     the worker's part, on any machine that shares the store
    check_parallel(...)                        what cannot work, before anything runs
"""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from configs.engine import EngineSettings
from configs.load import ConfigError
from configs.quantize import ParallelSettings
from configs.schema import Config
from configs.space import WeightCandidate
from tasks.data.text import TextSplits
from tasks.models.checkpoint import Architecture
from tasks.quantization.candidate_needs import candidate_name
from tasks.release.fresh_process import run_fresh
from tasks.release.quiet import at_work
from tasks.release.scoring import CandidateScores
from tasks.release.stage_result import CandidateResult
from tasks.release.workspace import Workspace
from tasks.store.errors import StoreError
from tasks.store.record import Record
from tasks.store.store import Store

_PACKAGES = {"dask": "prefect-dask", "ray": "prefect-ray"}


class ScreenJob(Record):
    """One candidate to build and screen, with all that a fresh process on another machine needs beside the store.

    Attributes:
        declared: the weight format.
        engine: with one cache type.
        config, source, architecture, splits, task_folder, items_digest, derived: the workspace.
        store: its folder, which the worker must see, too.
        until_s: time of day after which it is not begun any more, seconds of the epoch; None: always.
    """

    declared: WeightCandidate
    engine: EngineSettings
    config: Config
    store: Path
    source: str
    architecture: Architecture
    splits: TextSplits
    task_folder: Path | None
    items_digest: str
    derived: Path
    until_s: float | None = None

    @property
    def name(self) -> str:
        """What the candidate is called."""
        return candidate_name(self.engine, self.declared.weights)

    @classmethod
    def of(
        cls, workspace: Workspace, declared: WeightCandidate, engine: EngineSettings, until_s: float | None
    ) -> "ScreenJob":
        """The job of one declared candidate."""
        return cls(
            declared=declared,
            engine=engine,
            config=workspace.config,
            store=workspace.store.home,
            source=workspace.source.digest,
            architecture=workspace.architecture,
            splits=workspace.splits,
            task_folder=workspace.task_folder,
            items_digest=workspace.items_digest,
            derived=workspace.derived,
            until_s=until_s,
        )

    def workspace(self) -> Workspace:
        """The workspace on this machine.

        Raises:
            StoreError: it does not see the store, or the source is damaged there.
        """
        if not (self.store / "artifacts" / self.source).is_dir():
            raise StoreError(
                f"{os.uname().nodename} sees no store of this rollout at {self.store}; workers of quantize.parallel need KEIRYO_HOME "
                "on a disk that all of them share"
            )
        store = Store(self.store)
        return Workspace(
            config=self.config,
            store=store,
            source=store.open(self.source),
            architecture=self.architecture,
            splits=self.splits,
            task_folder=self.task_folder,
            items_digest=self.items_digest,
            derived=self.derived,
        )


ScreenMap = Callable[[Sequence[ScreenJob]], Sequence[CandidateResult]]
"""Screens every job, in whatever order, and answers in theirs."""


class ScreenRequest(Record):
    """Everything that the process of one candidate is told."""

    job: ScreenJob
    answer: Path


class ScreenAnswer(Record):
    """What it writes: the result, or what is wrong with the store."""

    result: CandidateResult | None = None
    store_error: str | None = None


def side_by_side(
    workspace: Workspace,
    declared: Sequence[tuple[WeightCandidate, EngineSettings]],
    refused: Mapping[str, str],
    screen_map: ScreenMap,
) -> list[CandidateResult]:
    """Screen all candidates but the refused ones through a map; in declared order.

    Args:
        workspace: of the rollout.
        declared: weight formats, each with one cache type.
        refused: why candidates must not be built, by name.
        screen_map: hands them out.

    Raises:
        EngineError, QualityError: the source, which every screen compares with, cannot be scored.
        StoreError: a worker does not see the store, or it is damaged.
    """
    with at_work(workspace.store), CandidateScores(workspace, None, "search") as source:
        source.text()  # before they all ask for it at once
    minutes = workspace.config.quantize.budget_minutes if workspace.config.quantize else None
    until_s = None if minutes is None else time.time() + 60 * minutes
    jobs = [
        ScreenJob.of(workspace, weights, engine, until_s)
        for weights, engine in declared
        if candidate_name(engine, weights.weights) not in refused
    ]
    # One is always tried, as where they go one after another.
    found = iter(screen_map([job.model_copy(update={"until_s": None}) for job in jobs[:1]] + jobs[1:]))
    names = (candidate_name(engine, weights.weights) for weights, engine in declared)
    return [
        CandidateResult(name=name, candidate=None, measurement=None, dropped=refused[name])
        if name in refused
        else next(found)
        for name in names
    ]


def budget_spent(minutes: float) -> str:
    """Why a candidate was not tried."""
    return f"not tried: quantize.budget_minutes ({minutes:g}) was spent"


def screened_alone(job: ScreenJob) -> CandidateResult:
    """Build and screen one candidate in a fresh process; what went wrong in it is the candidate's error.

    Raises:
        StoreError: the store is not there, or damaged.
    """
    minutes = job.config.quantize.budget_minutes if job.config.quantize else None
    if minutes is not None and job.until_s is not None and time.time() > job.until_s:
        return CandidateResult(name=job.name, candidate=None, measurement=None, dropped=budget_spent(minutes))
    with job.workspace().store.scratch() as folder:
        path = folder / "answer.json"
        ended = run_fresh("tasks.quantization.screen_process", ScreenRequest(job=job, answer=path))
        text = path.read_text(encoding="utf-8") if path.is_file() else None
    if text is None:
        error = f"EngineError: the process that built it did not answer; {ended}"
        return CandidateResult(name=job.name, candidate=None, measurement=None, error=error)
    answer = ScreenAnswer.model_validate_json(text)
    if answer.result is None:
        raise StoreError(str(answer.store_error))
    return answer.result


def check_parallel(parallel: ParallelSettings, *, threads: int, server: str | None) -> None:
    """Refuse what the machine or the environment cannot do.

    Args:
        parallel: the settings.
        threads: compute threads of each worker.
        server: address of a Prefect server that other processes can reach; None: there is none.

    Raises:
        ConfigError: one line with the way out.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    if parallel.is_here and parallel.workers > 1 and parallel.workers * threads > cores:
        raise ConfigError(
            f"quantize.parallel.workers = {parallel.workers}: with threads: {threads} each they need {parallel.workers * threads} "
            f"cores, this machine has {cores}, and thread pools that share a core take ten times as long; use threads: "
            f"{max(1, cores // parallel.workers)} or workers: {max(1, cores // threads)}"
        )
    if parallel.runner == "threads":
        return
    package = _PACKAGES[parallel.runner]
    if find_spec(package.replace("-", "_")) is None:
        raise ConfigError(
            f'quantize.parallel.runner = {parallel.runner}: needs package {package}; `uv pip install -e ".[{parallel.runner}]"`, '
            "or use runner: threads"
        )
    if server is None:
        raise ConfigError(
            f"quantize.parallel.runner = {parallel.runner}: its workers need one Prefect server, or each would start its own; run "
            "`prefect server start` and set PREFECT_API_URL to its address"
        )
