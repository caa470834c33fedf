"""`keiryo ui`: the MLflow UI and the Prefect UI on the local store, both on loopback."""

import os
import subprocess
import sys
import time

from flows.offline import prepare_environment
from tasks.store.store import store_home
from tasks.tracking.store import open_tracking

HOST = "127.0.0.1"
MLFLOW_PORT, PREFECT_PORT = 5000, 4200


def serve() -> None:
    """Start both and wait; Ctrl-C ends both. Where PREFECT_API_URL names a server, that one is shown and none is started."""
    prepare_environment(store_home(), hub=False, threads=1)
    tracking = open_tracking()
    prefect = os.environ.get("PREFECT_API_URL", "").removesuffix("/api")
    commands = [
        [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(MLFLOW_PORT),
         "--backend-store-uri", tracking.uri],
    ]  # fmt: skip
    if not prefect:
        prefect = f"http://{HOST}:{PREFECT_PORT}"
        commands.append(
            [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(PREFECT_PORT)]
        )
    processes = [subprocess.Popen(command, env=os.environ) for command in commands]
    print(
        f"MLflow:  http://{HOST}:{MLFLOW_PORT}\nPrefect: {prefect}\nCtrl-C ends what was started.",
        flush=True,
    )
    try:
        while all(process.poll() is None for process in processes):
            time.sleep(0.5)
    except KeyboardInterrupt:
        print("stopping", flush=True)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(timeout=30)
