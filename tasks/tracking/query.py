"""Reading rollouts back: what `keiryo runs`, `show`, `compare` and `report` need."""

import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from pydantic import BaseModel, ValidationError

from configs.schema import Config
from tasks.release.evidence import Evidence
from tasks.release.ledger import Ledger
from tasks.release.stage_result import StageResult
from tasks.release.summary import RolloutSummary
from tasks.store.record import Record
from tasks.tracking.process import is_dead
from tasks.tracking.runs import children
from tasks.tracking.store import Tracking

_SHORTEST_PREFIX = 4
_ROLLOUTS = "tags.`keiryo.kind` = 'rollout'"


R = TypeVar("R", bound=BaseModel)


class UnknownRun(LookupError):
    """No such rollout, or a prefix of several; the message says which there are."""


class RolloutUnfinished(LookupError):
    """The rollout has no verdict yet."""


class OtherVersion(LookupError):
    """A rollout was recorded by a version of Keiryo with other records."""


class RunRow(Record):
    """One line of `keiryo runs`.

    Attributes:
        run_id: MLflow's id.
        model: source model.
        config: recipe.
        status: FINISHED, RUNNING, KILLED or FAILED; a run whose process is dead is KILLED before MLflow knows
            it.
        verdict: None until the rollout has ended.
        started: UTC time, ISO 8601.
        seconds: duration; None while it runs.
    """

    run_id: str
    model: str
    config: str
    status: str
    verdict: str | None
    started: str
    seconds: float | None


def list_runs(tracking: Tracking, model: str | None = None, limit: int = 100) -> tuple[RunRow, ...]:
    """The newest rollouts, newest first, of one model or of all."""
    wanted = _ROLLOUTS if model is None else f"{_ROLLOUTS} AND tags.`keiryo.model` = '{model}'"
    return tuple(_row(run) for run in _search(tracking, wanted, limit))


def find_run(tracking: Tracking, reference: str) -> str:
    """The id of a rollout from "latest", a full id, or the beginning of one.

    Raises:
        UnknownRun: nothing fits, or several rollouts do.
    """
    runs = _search(tracking, _ROLLOUTS, 1 if reference == "latest" else 10_000)
    fitting = [
        run.info.run_id
        for run in runs
        if reference == "latest"
        or run.info.run_id == reference
        or (len(reference) >= _SHORTEST_PREFIX and run.info.run_id.startswith(reference))
    ]
    if len(fitting) == 1:
        return str(fitting[0])
    if fitting:
        raise UnknownRun(f"{reference!r} begins the ids of {len(fitting)} rollouts: {', '.join(fitting[:5])}")
    newest = ", ".join(run.info.run_id for run in runs[:5]) or "none; start one: keiryo run CONFIG"
    raise UnknownRun(f"no rollout {reference!r}; the newest are {newest}")


def load_run(tracking: Tracking, reference: str) -> RolloutSummary:
    """The summary of a rollout.

    Raises:
        UnknownRun: nothing fits the reference.
        RolloutUnfinished: it has no verdict yet.
    """
    return _read(tracking, find_run(tracking, reference), "summary.json", RolloutSummary)


def load_results(tracking: Tracking, summary: RolloutSummary) -> tuple[StageResult, ...]:
    """The stages of a rollout, in the order they ran.

    Raises:
        OtherVersion: they were recorded by another version.
    """
    run_id = summary.run_id
    experiment = tracking.client.get_run(run_id).info.experiment_id
    stages = [
        run for run in children(tracking, experiment, run_id) if run.info.status in ("FINISHED", "FAILED")
    ]
    results = {
        run.data.tags["keiryo.stage"]: _read(tracking, run.info.run_id, "result.json", StageResult)
        for run in stages
    }
    return tuple(results[stage.stage] for stage in summary.stages)


def load_evidence(tracking: Tracking, reference: str) -> Evidence:
    """Everything that a report shows, as it was logged.

    Raises:
        UnknownRun: nothing fits the reference.
        RolloutUnfinished: it has no verdict yet.
        OtherVersion: it was recorded by another version.
    """
    summary = load_run(tracking, reference)
    run_id = summary.run_id
    names = {item.path for item in tracking.client.list_artifacts(run_id)}
    return Evidence(
        config=_read(tracking, run_id, "config.json", Config),
        summary=summary,
        results=load_results(tracking, summary),
        ledger=_read(tracking, run_id, "ledger.json", Ledger) if "ledger.json" in names else None,
        environment=json.loads(_text(tracking, run_id, "environment.json")),
    )


def _search(tracking: Tracking, wanted: str, limit: int) -> list[Run]:
    """Rollouts of every model, newest first."""
    experiments = tracking.client.search_experiments(filter_string="name LIKE 'keiryo/%'")
    ids = [experiment.experiment_id for experiment in experiments]
    if not ids:
        return []
    return list(
        tracking.client.search_runs(ids, wanted, max_results=limit, order_by=["attributes.start_time DESC"])
    )


def _row(run: Run) -> RunRow:
    tags, info = run.data.tags, run.info
    dead = info.status == "RUNNING" and is_dead(tags["keiryo.process"])
    return RunRow(
        run_id=info.run_id,
        model=tags["keiryo.model"],
        config=tags["keiryo.config"],
        status="KILLED" if dead else info.status,
        verdict=tags.get("keiryo.verdict"),
        started=datetime.fromtimestamp(info.start_time / 1000, UTC).isoformat(timespec="seconds"),
        seconds=run.data.metrics.get("time/rollout_s"),
    )


def _read(tracking: Tracking, run_id: str, name: str, kind: type[R]) -> R:
    text = _text(tracking, run_id, name)
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise OtherVersion(
            f"rollout {run_id} was recorded by another version of Keiryo ({name} differs at {where}); its own report "
            "is in its MLflow run (report.html); run again to compare"
        ) from error


def _text(tracking: Tracking, run_id: str, name: str) -> str:
    try:
        with tempfile.TemporaryDirectory() as folder:
            return Path(tracking.client.download_artifacts(run_id, name, folder)).read_text(encoding="utf-8")
    except (MlflowException, FileNotFoundError) as error:
        if name != "summary.json":
            raise
        raise RolloutUnfinished(
            f"rollout {run_id} has no verdict yet; if its process is gone, the same `keiryo run` continues it"
        ) from error
