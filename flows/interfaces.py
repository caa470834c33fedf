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
    """Start both and wait; Ctrl-C ends both."""
    prepare_environment(store_home(), hub=False, threads=1)
    tracking = open_tracking()
    commands = [
        [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(MLFLOW_PORT),
         "--backend-store-uri", tracking.uri],
        [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(PREFECT_PORT)],
    ]  # fmt: skip
    processes = [subprocess.Popen(command, env=os.environ) for command in commands]
    print(
        f"MLflow:  http://{HOST}:{MLFLOW_PORT}\nPrefect: http://{HOST}:{PREFECT_PORT}\nCtrl-C ends both.",
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
