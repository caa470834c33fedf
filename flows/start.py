"""`keiryo run`: check the input, set the environment, start the flow, return its summary."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from configs.load import load_config
from flows.offline import prepare_environment
from tasks.release.summary import RolloutSummary
from tasks.store.store import store_home

OWNER = "KEIRYO_RUN_PID"
"""Every process that a run starts carries its pid in this variable, so that the next run can tell what a kill left behind."""


def run(config: Path, overrides: Sequence[str]) -> RolloutSummary:
    """Run a recipe to its end.

    Raises:
        ConfigError: the configuration cannot be used; nothing was started.
        Exception: whatever stopped the flow without a verdict.
    """
    settings = load_config(config, overrides)
    prepare_environment(store_home(), hub=settings.needs_hub, threads=settings.threads)
    stop_orphans()
    os.environ[OWNER] = str(os.getpid())
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    with ThreadPoolExecutor(1) as pool:
        # The server needs ten seconds of one core to come up; importing the stages takes the other core meanwhile.
        server = pool.submit(_start_server) if PREFECT_API_URL.value() is None else None
        from flows.rollout import rollout

        if server is not None:
            server.result()
    # The heartbeat thread wakes once a second: every flow would end a second later than its last task.
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        state = rollout(str(config), list(overrides), return_state=True)
    result = state.result(raise_on_failure=False)
    if isinstance(result, BaseException):
        raise result
    return RolloutSummary.model_validate(result)


def _start_server() -> None:
    """Start the server that Prefect would start at the first flow."""
    from prefect.server.api.server import SubprocessASGIServer

    SubprocessASGIServer().start()


def stop_orphans() -> None:
    """End the Prefect servers of runs that were killed: SIGKILL leaves them running, each with a database open."""
    for process in psutil.process_iter():
        try:
            owner = process.environ().get(OWNER)
            if owner and owner.isdigit() and process.pid != int(owner) and not psutil.pid_exists(int(owner)):
                process.terminate()
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue  # another user's process, or one that has just ended
