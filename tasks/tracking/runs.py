"""A rollout in MLflow, by `mlflow/README.md`: a parent run, a child a stage, a grandchild a candidate."""

import hashlib
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

from configs.schema import Config
from tasks.quality.changed_most import ChangedItem
from tasks.quality.samples import Samples
from tasks.release.ledger import Ledger
from tasks.release.metrics import candidate_metrics, merge, stage_metrics
from tasks.release.stage_result import CandidateResult, StageResult
from tasks.release.summary import RolloutSummary
from tasks.tracking.process import is_dead, this_process
from tasks.tracking.stage_files import log_stage_files, read_changed, standalone, write_text
from tasks.tracking.store import Tracking

_PARENT = "mlflow.parentRunId"
_DIGEST_LETTERS = 36  # MLflow cuts the digest of a dataset here


def log_rollout_start(tracking: Tracking, config: Config, run_id: str | None = None) -> str:
    """Begin the parent run, or take up the one that a killed rollout left; return its id.

    Runs that dead processes of this machine left RUNNING become KILLED. A `run_id` that this store does not
    hold, or that has its verdict already, gets a new run, which names it in the tag `keiryo.replaces`.
    """
    experiment = tracking.experiment(config.model.name)
    _reap(tracking, experiment, keep=run_id)
    if run_id is not None and _can_continue(tracking, run_id):
        _reap_children(tracking, experiment, run_id)
        tracking.client.set_tag(run_id, "keiryo.process", this_process())
        tracking.client.update_run(run_id, status="RUNNING")
        return run_id
    tags = {
        "keiryo.kind": "rollout",
        "keiryo.config": config.name,
        "keiryo.model": config.model.name,
        "keiryo.process": this_process(),
        "mlflow.source.name": f"keiryo run {config.name}",
    }
    if run_id is not None:
        tags["keiryo.replaces"] = run_id
    run = tracking.client.create_run(experiment, tags=tags, run_name=config.name)
    params = [Param(name, value) for name, value in flatten(config.model_dump(mode="json")).items()]
    tracking.client.log_batch(run.info.run_id, params=params)
    tracking.client.log_dict(run.info.run_id, config.model_dump(mode="json"), "config.json")
    return str(run.info.run_id)


def log_stage(
    tracking: Tracking,
    run_id: str,
    result: StageResult,
    samples: Mapping[str, Samples] | None = None,
    folders: Mapping[str, Path] | None = None,
) -> str:
    """Log a stage with its candidates, per-sample results by role, further folders by name; return its run's id.

    Logging the same result again, as a rollout that is continued does, finds the run that is there. What a
    killed process had logged in part stays as a KILLED run.
    """
    experiment = tracking.client.get_run(run_id).info.experiment_id
    digest = hashlib.sha256(result.model_dump_json(exclude={"cached"}).encode()).hexdigest()
    for run in children(tracking, experiment, run_id):
        if run.data.tags.get("keiryo.result") == digest and run.info.status in ("FINISHED", "FAILED"):
            return str(run.info.run_id)
    ended_ms = _now_ms()
    run = tracking.client.create_run(
        experiment,
        start_time=ended_ms - round(result.seconds * 1000),
        tags={
            _PARENT: run_id,
            "keiryo.kind": "stage",
            "keiryo.process": this_process(),
            **_stage_tags(result, digest),
        },
        run_name=result.stage,
    )
    stage_run = str(run.info.run_id)
    for candidate in result.candidates:
        _log_candidate(tracking, experiment, stage_run, candidate, result)
    _log_metrics(tracking, stage_run, stage_metrics(result))
    _log_samples_used(tracking, stage_run, samples or {})
    log_stage_files(tracking, stage_run, result, samples or {})
    for name, folder in (folders or {}).items():
        tracking.client.log_artifacts(stage_run, str(folder), name)
    tracking.client.set_terminated(stage_run, "FAILED" if result.verdict == "ERROR" else "FINISHED", ended_ms)
    return stage_run


def log_rollout_end(
    tracking: Tracking,
    summary: RolloutSummary,
    ledger: Ledger | None,
    environment: Mapping[str, str],
    report_html: str,
    figures: Mapping[str, str],
) -> None:
    """Close the parent run with its verdict, summary, ledger, figures (file name to SVG) and report."""
    run_id = summary.run_id
    _log_metrics(tracking, run_id, _rollout_metrics(summary, ledger))
    tags = {
        "keiryo.verdict": summary.verdict,
        "keiryo.artifact": summary.release.artifact if summary.release else "",
        "mlflow.note.content": f"**{summary.verdict}**: {summary.reason}\n\nSee `report.html`.",
    }
    tracking.client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_text(root, "summary.json", summary.model_dump_json(indent=2))
        write_text(root, "environment.json", json.dumps(dict(environment), indent=2))
        write_text(root, "report.html", report_html)
        if ledger is not None:
            write_text(root, "ledger.json", ledger.model_dump_json(indent=2))
        for name, svg in figures.items():
            write_text(root / "figures", name, standalone(svg))
        tracking.client.log_artifacts(run_id, folder)
    tracking.client.set_terminated(run_id, "FAILED" if summary.verdict == "ERROR" else "FINISHED")


def log_rollout_stopped(tracking: Tracking, run_id: str, reason: str) -> None:
    """Close the parent run without a verdict: stopped or crashed, to be continued by `log_rollout_start`."""
    tracking.client.set_tag(run_id, "mlflow.note.content", f"Stopped without a verdict: {reason}")
    tracking.client.set_terminated(run_id, "KILLED")


def load_changed(tracking: Tracking, run_id: str) -> dict[str, tuple[ChangedItem, ...]]:
    """The samples that changed most, by stage of a rollout, where a stage judged any."""
    experiment = tracking.client.get_run(run_id).info.experiment_id
    found = {
        run.data.tags["keiryo.stage"]: read_changed(tracking, run.info.run_id)
        for run in children(tracking, experiment, run_id)
        if run.info.status in ("FINISHED", "FAILED")
    }
    return {stage: rows for stage, rows in found.items() if rows}


def children(tracking: Tracking, experiment: str, run_id: str) -> list[Run]:
    """Runs directly below a run, oldest first."""
    found: list[Run] = []
    token: str | None = None
    while True:
        page = tracking.client.search_runs(
            [experiment],
            f"tags.`{_PARENT}` = '{run_id}'",
            order_by=["attributes.start_time"],
            page_token=token,
        )
        found += page
        token = page.token
        if not token:
            return found


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """A nested configuration as `{"quality.margins.kl_nats": "0.02"}`; items of a list by their index."""
    if isinstance(value, dict) and value:
        items = value.items()
    elif isinstance(value, list) and value:
        items = {str(index): item for index, item in enumerate(value)}.items()
    else:
        return {prefix: json.dumps(value) if isinstance(value, dict | list) else str(value)}
    return {
        name: text
        for key, item in items
        for name, text in flatten(item, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def _can_continue(tracking: Tracking, run_id: str) -> bool:
    try:
        run = tracking.client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            return False
        raise
    return run.info.lifecycle_stage == "active" and "keiryo.verdict" not in run.data.tags


def _reap(tracking: Tracking, experiment: str, keep: str | None) -> None:
    """Close every rollout of the experiment whose process is dead, and what lies below it."""
    running = tracking.client.search_runs(
        [experiment], "attributes.status = 'RUNNING' AND tags.`keiryo.kind` = 'rollout'"
    )
    for run in running:
        if run.info.run_id != keep and is_dead(run.data.tags["keiryo.process"]):
            _reap_children(tracking, experiment, run.info.run_id)
            tracking.client.set_terminated(run.info.run_id, "KILLED")


def _reap_children(tracking: Tracking, experiment: str, run_id: str) -> None:
    """Close every stage and candidate that was being logged below a rollout."""
    for run in children(tracking, experiment, run_id):
        if run.info.status == "RUNNING":
            _reap_children(tracking, experiment, run.info.run_id)
            tracking.client.set_terminated(run.info.run_id, "KILLED")


def _stage_tags(result: StageResult, digest: str) -> dict[str, str]:
    proposal = result.proposal
    return {
        "keiryo.stage": result.stage,
        "keiryo.verdict": result.verdict,
        "keiryo.kept": str(result.kept).lower(),
        "keiryo.cached": str(result.cached).lower(),
        "keiryo.artifact": proposal.artifact if proposal else "",
        "keiryo.engine": proposal.engine.engine if proposal else "",
        "keiryo.result": digest,
        "mlflow.note.content": f"**{result.verdict}**: {result.reason}",
    }


def _log_candidate(
    tracking: Tracking, experiment: str, stage_run: str, result: CandidateResult, stage: StageResult
) -> None:
    candidate = result.candidate
    proposed = candidate is not None and candidate == stage.proposal
    tags = {_PARENT: stage_run, "keiryo.kind": "candidate", "keiryo.stage": stage.stage}
    tags |= {"keiryo.candidate": result.name, "keiryo.proposed": str(proposed).lower()}
    tags["keiryo.kept"] = str(proposed and stage.kept).lower()
    params: list[Param] = []
    if candidate is not None:
        tags |= {"keiryo.artifact": candidate.artifact, "keiryo.engine": candidate.engine.engine}
        settings = {"weights": candidate.weights, "engine": candidate.engine.model_dump(mode="json")}
        params = [Param(name, value) for name, value in flatten(settings).items()]
    if result.error is not None:
        tags |= {"keiryo.verdict": "ERROR", "mlflow.note.content": f"**ERROR**: {result.error}"}
    elif result.dropped is not None:
        tags["mlflow.note.content"] = result.dropped
    elif result.judged is not None:
        tags |= {
            "keiryo.verdict": result.judged,
            "mlflow.note.content": f"**{result.judged}**: {result.reason}",
        }
    elif proposed:
        tags["keiryo.verdict"] = stage.verdict
    run = tracking.client.create_run(experiment, tags=tags, run_name=result.name)
    _log_metrics(tracking, run.info.run_id, candidate_metrics(result), params)
    tracking.client.set_terminated(run.info.run_id, "FAILED" if result.error else "FINISHED")


def _log_metrics(
    tracking: Tracking, run_id: str, metrics: Mapping[str, float], params: Sequence[Param] = ()
) -> None:
    now_ms = _now_ms()
    rows = [Metric(name, value, now_ms, 0) for name, value in merge(metrics).items()]
    tracking.client.log_batch(run_id, metrics=rows, params=params)


def _log_samples_used(tracking: Tracking, run_id: str, samples: Mapping[str, Samples]) -> None:
    """The item sets as MLflow datasets; both sides of a paired test have one item set, so it appears once."""
    tasks = {each.items_digest: sorted({row.task for row in each.rows}) for each in samples.values()}
    inputs = [
        DatasetInput(
            Dataset(
                name="gate items",
                digest=digest[:_DIGEST_LETTERS],
                source_type="keiryo",
                source=json.dumps({"items_sha256": digest}),
                profile=json.dumps({"tasks": names}),
            )
        )
        for digest, names in tasks.items()
    ]
    if inputs:
        tracking.client.log_inputs(run_id, inputs)


def _rollout_metrics(summary: RolloutSummary, ledger: Ledger | None) -> dict[str, float]:
    """The release's figures, so that rollouts can be sorted by them, and the ledger."""
    kept = [stage for stage in summary.stages if stage.kept]
    figures = {n: v for n, v in kept[-1].metrics.items() if not n.startswith("time/")} if kept else {}
    for row in (*ledger.rows, ledger.total) if ledger else ():
        figures |= {
            f"ledger/{row.stage}/decode_log_ratio": row.decode_log_ratio,
            f"ledger/{row.stage}/throughput_log_ratio": row.throughput_log_ratio,
            f"ledger/{row.stage}/weights_mib_delta": row.weights_mib_delta,
            f"ledger/{row.stage}/peak_mib_delta": row.peak_mib_delta,
        }
    return figures | {"time/rollout_s": summary.seconds}


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
