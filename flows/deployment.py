"""`keiryo deploy` and `keiryo trigger`: schedules and events on a Prefect server."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import yaml

from configs.load import ConfigError, load_config
from flows.offline import prepare_environment
from tasks.store.store import store_home

ROOT = Path(__file__).resolve().parents[1]
PREFECT_FILE = Path("configs/deploy/prefect.yaml")
EVENTS = "keiryo"
TIMEOUT_S = 30


class ServerError(RuntimeError):
    """The Prefect server did not do what was asked."""


def deploy() -> Iterator[str]:
    """Make the work pools and register every deployment of `configs/deploy/prefect.yaml`; one line each.

    Raises:
        ConfigError: no server is named.
        ServerError: the server does not answer or refuses.
    """
    url = _server()
    declared = yaml.safe_load((ROOT / PREFECT_FILE).read_text(encoding="utf-8"))["deployments"]
    for pool in sorted({entry["work_pool"]["name"] for entry in declared}):
        _post(f"{url}/work_pools/", {"name": pool, "type": "process"}, accepted=(200, 201, 409))
        yield f"work pool {pool}"
    command = ["-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(PREFECT_FILE)]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, env=os.environ
    )
    if done.returncode != 0:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise ServerError(f"prefect deploy failed: {lines[-1].strip() if lines else 'no output'}")
    for entry in declared:
        yield f"keiryo-rollout/{entry['name']}: {entry['parameters']['config']}"


def trigger(event: str, config: str | None) -> str:
    """Send the event `keiryo.<event>`; deployments that expect it start.

    Args:
        event: for example "new-model".
        config: the recipe that the deployment shall run; checked before anything is sent.

    Raises:
        ConfigError: no server is named, or the recipe cannot be used.
        ServerError: the server does not answer or refuses.
    """
    url = _server()
    recipe = config or "configs/smoke.yaml"
    settings = load_config(ROOT / recipe)
    body = {
        "id": str(uuid.uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": f"{EVENTS}.{event}",
        "resource": {"prefect.resource.id": f"{EVENTS}.model.{settings.model.name}"},
        "payload": {"config": recipe},
    }
    _post(f"{url}/events", [body], accepted=(204,))
    return f"sent {EVENTS}.{event} for {recipe}"


def _server() -> str:
    prepare_environment(store_home(), hub=False, threads=1)
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        raise ConfigError(
            "PREFECT_API_URL is not set: schedules and events need a server; start one with `prefect server start` and "
            "set PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    return url.rstrip("/")


def _post(url: str, body: object, accepted: tuple[int, ...]) -> None:
    try:
        answer = httpx.post(url, json=body, timeout=TIMEOUT_S)
    except httpx.HTTPError as error:
        raise ServerError(f"{url}: {error}; is the Prefect server running?") from error
    if answer.status_code not in accepted:
        raise ServerError(f"{url} answered {answer.status_code}: {answer.text[:200]}")
