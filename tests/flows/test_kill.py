"""SIGKILL in three places of a real rollout, then the same command again: it goes on, and loses nothing that was finished.

The engines, the export, the training and Prefect are real; the model is a tiny random Llama, so that all of it fits in minutes.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from tiny_llama import tiny_llama

from flows.start import OWNER

TIMEOUT_S = 300
RECIPE = """
name: kill
model: {{name: tiny, source: {{kind: folder, path: {model}}}}}
quality:
  margins: {{perplexity_fraction: 0.5, kl_nats: 0.5, accuracy: 0.5}}
  tasks: {{names: [keiryo_minimal_pairs], items: 100}}
  text: {{section_characters: 200, search_sections: 4}}
requests: {{count: 4, max_new_tokens: 8, one_stream_new_tokens: 8, repeats: 1}}
profile: {{batch_sizes: [1], context_tokens: [8], new_tokens: 4}}
quantize:
  candidates:
    - {{engine: openvino, weights: {{bits: 8, symmetric: false}}, kv_cache: [f32, u8]}}
    - {{engine: openvino, weights: {{bits: 8, symmetric: true}}, kv_cache: [u8]}}
adapt:
  data: text
  methods: [{{method: lora, rank: 4}}]
  training: {{steps: 400, batch_sequences: 2, sequence_tokens: 32, checkpoint_steps: 20, autocast: none}}
"""


def start(recipe: Path, home: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"KEIRYO_HOME": str(home / "store"), "KEIRYO_MLFLOW": str(home / "mlflow")}
    command = [sys.executable, "-c", "from flows.cli import main; main()", "run", str(recipe), "--json"]
    return subprocess.Popen(
        command,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def kill_when(process: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    """SIGKILL the rollout, its children left to themselves, as the kernel would."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while not reached():
        assert process.poll() is None, "the rollout ended before the place where it should be killed"
        assert time.monotonic() < deadline_s, "the rollout never came to the place where it should be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()


def finished(home: Path) -> dict[str, int]:
    """Remembered results and when each was written."""
    skip = ("open-run",)
    return {
        path.name: path.stat().st_mtime_ns
        for path in (home / "store" / "results").glob("*.json")
        if not path.name.startswith(skip)
    }


def orphans() -> list[int]:
    """Processes that a killed rollout left."""
    found = []
    for process in psutil.process_iter():
        try:
            owner = process.environ().get(OWNER, "")
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            found.append(process.pid)
    return found


@pytest.mark.flow
def test_a_killed_rollout_continues(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "model")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(model=tmp_path / "model"))
    results, derived = tmp_path / "store" / "results", tmp_path / "store" / "derived"
    places: list[Callable[[], bool]] = [
        lambda: any(results.glob("measurement-*.json")),  # in the profile stage
        lambda: len(list(results.glob("measurement-*.json"))) >= 3,  # in the middle of the quantize search
        lambda: any(derived.glob("training-*/checkpoint-*/trainer_state.json")),  # while the adapter trains
    ]
    done: dict[str, int] = {}
    for reached in places:
        process = start(recipe, tmp_path)
        kill_when(process, reached)
        now = finished(tmp_path)
        assert {name: now.get(name) for name in done} == done, "a finished result was computed again or lost"
        done = now

    process = start(recipe, tmp_path)
    out, _ = process.communicate(timeout=TIMEOUT_S)
    summary = json.loads(out)
    assert summary["verdict"] in ("PASS", "FAIL", "INCONCLUSIVE"), summary["reason"]
    assert process.returncode == summary["exit_code"]
    assert {stage["stage"]: stage["cached"] for stage in summary["stages"]}["profile"]
    now = finished(tmp_path)
    assert {name: now.get(name) for name in done} == done
    assert orphans() == []
    assert not list(derived.glob("training-*")), "training checkpoints are removed once the adapter is sealed"
