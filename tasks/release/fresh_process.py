"""A fresh process of this program: it inherits the environment alone, and answers in a file; libraries print where they like."""

import os
import subprocess
import sys

from tasks.store.digest import PROJECT_ROOT
from tasks.store.record import Record


def run_fresh(module: str, request: Record, *, limit_s: float | None = None) -> str:
    """Run `python -m module` with a request on its standard input, to its end.

    Args:
        module: one of ours, which reads the request and writes its answer where that says.
        request: everything that the process is told.
        limit_s: after which it is killed; None: it may take as long as it likes.

    Returns:
        How it ended, one line: the reason where the answer is missing.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", module], input=request.model_dump_json(), cwd=PROJECT_ROOT, env=environment,
            capture_output=True, text=True, timeout=limit_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"no answer after {limit_s:.0f} s"
    said = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
    return f"it ended with status {done.returncode}: {said[0]}"
