"""A rollout in a real SQLite store: what the MLflow contract promises is there, also after a kill."""

import json
import math
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest
from fake_rollout import CONFIG, INT8, RESULTS, evidence, samples

from tasks.quality.changed_most import changed_most
from tasks.quality.samples import ItemNote, Samples
from tasks.release.evidence import Evidence
from tasks.release.stage_result import StageResult
from tasks.tracking.parquet import read_samples, write_samples
from tasks.tracking.process import is_dead, this_process
from tasks.tracking.query import RolloutUnfinished, UnknownRun, find_run, list_runs, load_evidence, load_run
from tasks.tracking.runs import (
    children,
    flatten,
    load_changed,
    log_rollout_end,
    log_rollout_start,
    log_rollout_stopped,
    log_stage,
)
from tasks.tracking.store import Tracking, TrackingError


def noted(value: float, said: str) -> Samples:
    """The fake's samples with what the model answered."""
    bare = samples(value)
    notes = tuple(
        ItemNote(task=row.task, item=row.item, item_hash=row.item_hash, prompt=f"The capital of country {row.item} is",
                 target="Rome", answer="Rome" if row.value else said, margin_nats=row.value - 0.5)
        for row in bare.rows
    )  # fmt: skip
    return bare.model_copy(update={"notes": notes})


BOTH = {"reference": noted(1.0, "Oslo"), "candidate": noted(0.0, "<b>Bern</b>")}


def log_all(tracking: Tracking) -> tuple[Evidence, dict[str, str]]:
    """Log the whole fake rollout; return its evidence and the run ids of its stages."""
    run_id = log_rollout_start(tracking, CONFIG)
    stages = {r.stage: log_stage(tracking, run_id, r, BOTH if r.stage == "quantize" else {}) for r in RESULTS}
    made = evidence(run_id)
    log_rollout_end(tracking, made.summary, made.ledger, made.environment, "<html>", {"ledger.svg": "<svg/>"})
    return made, stages


def test_a_rollout_reads_back_as_it_was_logged(tracking: Tracking) -> None:
    made, _ = log_all(tracking)
    run_id = made.summary.run_id
    assert load_run(tracking, "latest") == made.summary
    assert load_evidence(tracking, run_id[:8]) == made
    (row,) = list_runs(tracking, "tiny-llama")
    assert (row.run_id, row.verdict, row.status, row.seconds) == (run_id, "PASS", "FINISHED", 204.5)
    assert list_runs(tracking, "another") == ()


def test_the_contract_is_in_mlflow(tracking: Tracking) -> None:
    made, stages = log_all(tracking)
    client = tracking.client
    parent = client.get_run(made.summary.run_id)
    assert client.get_experiment(parent.info.experiment_id).name == "keiryo/tiny-llama"
    assert parent.data.params["quality.margins.kl_nats"] == "0.02"
    assert parent.data.tags["keiryo.verdict"] == "PASS"
    files = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert files >= {
        "report.html",
        "ledger.json",
        "summary.json",
        "figures",
        "config.json",
        "environment.json",
    }

    below = children(tracking, parent.info.experiment_id, parent.info.run_id)
    assert {run.data.tags["keiryo.stage"] for run in below} == {r.stage for r in RESULTS}
    quantize = client.get_run(stages["quantize"])
    expected = {
        "keiryo.stage": "quantize",
        "keiryo.verdict": "PASS",
        "keiryo.kept": "true",
        "keiryo.artifact": INT8.artifact,
        "keiryo.engine": "openvino",
    }
    assert expected.items() <= quantize.data.tags.items()
    assert quantize.data.metrics["perf/decode_tokens_per_s"] == 92.0
    assert quantize.data.metrics["quality/keiryo_last_word/acc_delta"] == pytest.approx(-0.004)
    (dataset,) = quantize.inputs.dataset_inputs
    assert dataset.dataset.digest == "9" * 36
    assert client.get_run(stages["adapt"]).data.tags["keiryo.kept"] == "false"
    assert client.get_run(stages["distill"]).data.tags["keiryo.verdict"] == "SKIPPED"


def test_candidates_are_grandchildren(tracking: Tracking) -> None:
    _, stages = log_all(tracking)
    stage = tracking.client.get_run(stages["quantize"])
    below = {r.info.run_name: r for r in children(tracking, stage.info.experiment_id, stages["quantize"])}
    assert below.keys() == {each.name for each in RESULTS[1].candidates}
    assert below[INT8.name].data.tags["keiryo.kept"] == "true"
    assert below[INT8.name].data.metrics["quality/search/kl_nats"] == 0.0045
    assert below[INT8.name].data.params["engine.kv_cache"] == "u8"
    broken = below["onnxruntime int4"]
    assert (broken.data.tags["keiryo.verdict"], broken.info.status) == ("ERROR", "FAILED")


def test_samples_are_parquet(tracking: Tracking, tmp_path: Path) -> None:
    _, stages = log_all(tracking)
    path = Path(tracking.client.download_artifacts(stages["quantize"], "samples/candidate.parquet"))
    assert read_samples(path) == BOTH["candidate"]
    (row,) = pq.read_table(path, filters=[("item", "=", "7")]).to_pylist()
    assert (row["metric"], row["value"], row["answer"]) == ("acc", 0.0, "<b>Bern</b>")
    pq.write_table(pq.read_table(path).replace_schema_metadata({}), tmp_path / "foreign.parquet")
    with pytest.raises(ValueError, match="items_digest"):
        read_samples(tmp_path / "foreign.parquet")
    write_samples(samples(), tmp_path / "own.parquet")
    assert read_samples(tmp_path / "own.parquet") == samples()


def test_the_samples_that_changed_most_are_a_table(tracking: Tracking) -> None:
    made, stages = log_all(tracking)
    stage = tracking.client.get_run(stages["quantize"])
    shown = json.loads(stage.data.tags["mlflow.loggedArtifacts"])  # what makes MLflow's UI show a table
    assert shown == [{"path": "changed_most.json", "type": "table"}]
    path = tracking.client.download_artifacts(stage.info.run_id, "changed_most.json")
    table = pd.read_json(path, orient="split")
    assert list(table["source"]) == ["Rome"] * 26  # the fake's items, without every third
    assert set(table["candidate"]) == {"<b>Bern</b>"}
    assert set(table["change"]) == {"became wrong"}
    assert set(table["change_nats"]) == {-1.0}
    assert load_changed(tracking, made.summary.run_id) == {"quantize": changed_most(*BOTH.values())}


def test_models_that_answer_alike_leave_no_table(tracking: Tracking) -> None:
    run_id = log_rollout_start(tracking, CONFIG)
    same = {"reference": noted(1.0, "Oslo"), "candidate": noted(1.0, "Oslo")}
    stage = log_stage(tracking, run_id, RESULTS[1], same)
    assert "changed_most.json" not in {item.path for item in tracking.client.list_artifacts(stage)}
    assert load_changed(tracking, run_id) == {}


def test_every_judged_stage_has_its_forest(tracking: Tracking) -> None:
    _, stages = log_all(tracking)
    for result in RESULTS:
        drawn = {item.path for item in tracking.client.list_artifacts(stages[result.stage], "figures")}
        assert drawn == ({"figures/gate-forest.svg"} if result.gate else set())
    path = Path(tracking.client.download_artifacts(stages["adapt"], "figures/gate-forest.svg"))
    svg = path.read_text(encoding="utf-8")
    ElementTree.fromstring(svg)
    assert "keiryo_world_facts acc" in svg
    assert "adapt" in svg
    assert "quantize" not in svg  # its own, not the rollout's
    assert "background: #ffffff" in svg


def test_logging_a_stage_again_makes_no_second_run(tracking: Tracking) -> None:
    run_id = log_rollout_start(tracking, CONFIG)
    first = log_stage(tracking, run_id, RESULTS[1])
    found = RESULTS[1].model_copy(update={"cached": True})
    assert log_stage(tracking, run_id, found) == first
    experiment = tracking.client.get_run(run_id).info.experiment_id
    assert len(children(tracking, experiment, run_id)) == 1


def test_a_measurement_that_is_not_finite_is_never_logged(tracking: Tracking) -> None:
    run_id = log_rollout_start(tracking, CONFIG)
    broken = StageResult.model_construct(**dict(RESULTS[0]) | {"metrics": {"perf/x": math.inf}})
    with pytest.raises(ValueError, match="perf/x is inf"):
        log_stage(tracking, run_id, broken)


def test_an_adapter_is_logged_whole(tracking: Tracking, tmp_path: Path) -> None:
    folder = tmp_path / "adapter-of-the-store"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "README.md").write_text("card")
    run_id = log_rollout_start(tracking, CONFIG)
    stage = log_stage(tracking, run_id, RESULTS[0], folders={"adapter": folder})
    logged = Path(tracking.client.download_artifacts(stage, "adapter"))
    assert (logged / "adapter_model.safetensors").read_bytes() == b"weights"
    assert (logged / "README.md").read_text() == "card"


def test_a_text_cannot_leave_its_folder(tracking: Tracking) -> None:
    run_id = log_rollout_start(tracking, CONFIG)
    with pytest.raises(ValueError, match="leads out of its folder"):
        log_stage(tracking, run_id, RESULTS[0].model_copy(update={"text": {"../../x.md": "x"}}))


KILLED = """
import os, signal
from fake_rollout import CONFIG, RESULTS
from tasks.tracking import runs
from tasks.tracking.store import open_tracking
tracking = open_tracking()
run_id = runs.log_rollout_start(tracking, CONFIG)
runs.log_stage(tracking, run_id, RESULTS[0])
print(run_id, flush=True)
runs._log_metrics = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
runs.log_stage(tracking, run_id, RESULTS[1])
"""


def killed_rollout() -> str:
    """Run id of a rollout whose process was killed while it logged its second stage."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.path[:0] = {[str(root), str(root / 'tests/fixtures')]}\n{KILLED}",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -9, done.stderr
    return done.stdout.strip()


def test_a_killed_rollout_goes_on_in_its_own_run(tracking: Tracking) -> None:
    run_id = killed_rollout()
    assert [row.status for row in list_runs(tracking)] == ["KILLED"]  # before anything was written
    with pytest.raises(RolloutUnfinished, match="continues it"):
        load_run(tracking, run_id)
    assert log_rollout_start(tracking, CONFIG, run_id) == run_id
    for result in RESULTS:
        log_stage(tracking, run_id, result)
    experiment = tracking.client.get_run(run_id).info.experiment_id
    below = [(r.data.tags["keiryo.stage"], r.info.status) for r in children(tracking, experiment, run_id)]
    assert sorted(below) == sorted([("quantize", "KILLED"), *((r.stage, "FINISHED") for r in RESULTS)])
    made = evidence(run_id)
    log_rollout_end(tracking, made.summary, made.ledger, made.environment, "", {})
    assert load_evidence(tracking, run_id) == made
    running = tracking.client.search_runs([experiment], "attributes.status = 'RUNNING'")
    assert not running


def test_a_new_rollout_closes_what_a_dead_process_left(tracking: Tracking) -> None:
    killed = log_rollout_start(tracking, CONFIG)
    machine, pid, started = this_process().rsplit(" ", 2)
    dead = f"{machine} {pid} {float(started) - 100:.2f}"
    tracking.client.set_tag(killed, "keiryo.process", dead)
    fresh = log_rollout_start(tracking, CONFIG)
    assert fresh != killed
    assert tracking.client.get_run(killed).info.status == "KILLED"
    assert tracking.client.get_run(fresh).info.status == "RUNNING"
    another = log_rollout_start(tracking, CONFIG)  # this process lives: its other rollout is left alone
    assert tracking.client.get_run(fresh).info.status == "RUNNING"
    assert another != fresh


def test_an_ended_or_unknown_run_is_not_continued(tracking: Tracking) -> None:
    made, _ = log_all(tracking)
    ended = made.summary.run_id
    for given in (ended, "f" * 32):
        fresh = log_rollout_start(tracking, CONFIG, given)
        assert fresh != given
        assert tracking.client.get_run(fresh).data.tags["keiryo.replaces"] == given


def test_a_stopped_rollout_can_go_on(tracking: Tracking) -> None:
    run_id = log_rollout_start(tracking, CONFIG)
    log_rollout_stopped(tracking, run_id, "interrupted")
    assert [row.status for row in list_runs(tracking)] == ["KILLED"]
    assert log_rollout_start(tracking, CONFIG, run_id) == run_id
    assert [row.status for row in list_runs(tracking)] == ["RUNNING"]


def test_references_to_runs(tracking: Tracking) -> None:
    with pytest.raises(UnknownRun, match="keiryo run CONFIG"):
        find_run(tracking, "latest")
    first = log_rollout_start(tracking, CONFIG)
    second = log_rollout_start(tracking, CONFIG)
    assert find_run(tracking, "latest") == second
    assert find_run(tracking, first) == first
    with pytest.raises(UnknownRun, match=first):
        find_run(tracking, "nothing")


def test_a_deleted_experiment_says_how_to_get_it_back(tracking: Tracking) -> None:
    experiment = tracking.experiment("tiny-llama")
    tracking.client.delete_experiment(experiment)
    with pytest.raises(TrackingError, match=f"mlflow experiments restore -x {experiment}"):
        log_rollout_start(tracking, CONFIG)


def test_processes() -> None:
    assert not is_dead(this_process())
    machine, pid, started = this_process().rsplit(" ", 2)
    assert is_dead(f"{machine} {pid} {float(started) - 100:.2f}")  # the pid was reused
    gone = max(psutil.pids()) + 100_000
    assert is_dead(f"{machine} {gone} {started}")
    assert not is_dead(f"elsewhere/00 {gone} {started}")  # not ours to judge


def test_flatten() -> None:
    nested = {"a": {"b": [1, {"c": None}]}, "d": [], "e": "x"}
    assert flatten(nested) == {"a.b.0": "1", "a.b.1.c": "None", "d": "[]", "e": "x"}
