"""The fingerprint: same every time, readable, and without the heavy libraries."""

import subprocess
import sys

import psutil

from tasks.profiling.environment import environment, memory_limit_bytes, usable_cores


def test_fingerprint_is_stable_and_says_what_matters():
    found = environment()
    assert found == environment()
    assert {"cpu", "cpu_flags", "cores", "memory_gib", "gpu", "system", "python"} <= found.keys()
    assert all(found.values())
    assert int(found["cores"]) == usable_cores() >= 1
    assert 0 < memory_limit_bytes() <= psutil.virtual_memory().total


def test_a_caller_cannot_change_it():
    environment()["cpu"] = "another"
    assert environment()["cpu"] != "another"


def test_no_engine_library_is_imported():
    code = (
        "import sys; from tasks.profiling.environment import environment; environment();"
        "import tasks.profiling.memory_budget, tasks.profiling.recommend;"
        "print([m for m in ('torch', 'transformers', 'openvino', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
