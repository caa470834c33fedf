"""The process environment of every verb: no telemetry, no hub unless asked, loopback, logs on stderr.

Libraries read these variables when they are imported, so this module imports none of them and is called first.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

QUIET = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # The command line prints what ends a flow itself: one line for what is expected, the traceback for a defect.
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "NNCF_CI": "1",  # NNCF's way to leave its telemetry off
    "CI": "true",  # openvino_telemetry's, which the exporter of OpenVINO calls
    "MPLBACKEND": "Agg",
}


def prepare_environment(home: Path, *, hub: bool, threads: int) -> None:
    """Set what is not set yet.

    Args:
        home: the store; Prefect's own state lies inside it unless PREFECT_HOME says otherwise.
        hub: whether a model hub may be contacted.
        threads: compute threads of OpenMP and BLAS, which read their limit once.
    """
    offline = {} if hub else {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    counts = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    prefect = {
        "PREFECT_HOME": str(home / "prefect"),
        # A cold start migrates the database: 12 to 18 s on two cores, over the default of 20 s under load.
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    }
    for name, value in {**QUIET, **offline, **counts, **prefect}.items():
        os.environ.setdefault(name, value)
    # Prefect makes the last folder of this path only, and its server then times out without a word.
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Whatever is printed inside, by Python or by native code, goes to stderr; `--json` owns stdout."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)
