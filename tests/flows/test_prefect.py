"""A real Prefect server and a process worker on loopback: deploy, trigger, and a run that ends with its verdict in MLflow."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
START_S, RUN_S = 120, 420


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process with everything it started."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, shared_store) -> dict[str, str]:
    """One server address, one Prefect home; the artifacts are the shared ones, so that the model is converted once."""
    folder = tmp_path_factory.mktemp("prefect")
    return os.environ | {
        "PREFECT_HOME": str(folder / "home"),
        "PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
        "KEIRYO_HOME": str(shared_store.home),
        "KEIRYO_MLFLOW": str(folder / "mlflow"),
    }


@pytest.fixture(scope="module")
def server(environment: dict[str, str]) -> Iterator[str]:
    url = environment["PREFECT_API_URL"]
    port = url.removesuffix("/api").rpartition(":")[2]
    Path(environment["PREFECT_HOME"]).mkdir(parents=True)
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", port]
    process = subprocess.Popen(
        command,
        env=environment,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline_s = time.monotonic() + START_S
        while True:
            assert process.poll() is None, "the Prefect server ended"
            assert time.monotonic() < deadline_s, "the Prefect server did not start"
            try:
                if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.5)
        yield url
    finally:
        stop(process)


def keiryo(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from flows.cli import main; main()", *words]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)


def query(url: str, what: str) -> list[dict[str, object]]:
    answer = httpx.post(f"{url}/{what}/filter", json={}, timeout=30)
    answer.raise_for_status()
    return list(answer.json())


@pytest.mark.flow
@pytest.mark.model
def test_an_event_starts_a_rollout_that_ends_with_its_verdict(server, environment, demo_checkpoint):
    deployed = keiryo(environment, "deploy")
    assert deployed.returncode == 0, deployed.stderr
    deployments = {str(found["name"]): found for found in query(server, "deployments")}
    assert deployments.keys() == {"nightly", "new-model"}
    assert deployments["nightly"]["schedules"], "the nightly deployment has its schedule"

    worker_command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "keiryo", "--limit", "1"]
    worker = subprocess.Popen(
        worker_command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        sent = keiryo(environment, "trigger", "new-model", "--config", "configs/smoke.yaml")
        assert sent.returncode == 0, sent.stderr
        deadline_s = time.monotonic() + RUN_S
        while True:
            runs = [
                run
                for run in query(server, "flow_runs")
                if run["deployment_id"] == deployments["new-model"]["id"]
            ]
            if runs and runs[0]["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
                break
            assert worker.poll() is None, "the worker ended"
            assert time.monotonic() < deadline_s, f"no finished run after {RUN_S} s: {runs}"
            time.sleep(1)
    finally:
        stop(worker)
    assert runs[0]["state_type"] == "COMPLETED", runs[0]["state"]
    assert runs[0]["state_name"] == "Gate PASS"

    shown = keiryo(environment, "show", "latest", "--json")
    assert shown.returncode == 0, shown.stderr
    summary = json.loads(shown.stdout)
    assert (summary["config"], summary["verdict"]) == ("smoke", "PASS")
    assert summary["release"]["name"] == "smollm2-135m-instruct"


def test_a_trigger_without_a_server_says_what_to_do(environment):
    without = {name: value for name, value in environment.items() if name != "PREFECT_API_URL"}
    done = keiryo(without, "trigger", "new-model")
    assert done.returncode == 2
    assert "PREFECT_API_URL is not set" in done.stderr
    assert "Traceback" not in done.stderr
