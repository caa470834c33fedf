"""The store under faults: SIGKILL, processes at once, a full disk."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.store.digest import PROJECT_ROOT
from tasks.store.errors import StoreError
from tasks.store.record import Record
from tasks.store.store import Store

PRELUDE = """
import sys, time
from pathlib import Path
from tasks.store.record import Record
from tasks.store.store import Store
store = Store(Path(sys.argv[1]))
class Count(Record):
    value: int
"""

KILLED = {
    "seal": """
def build(folder):
    (folder / "a.bin").write_bytes(b"half" * 1000)
    print("ready", flush=True)
    time.sleep(600)
store.seal(build, kind="checkpoint")
""",
    "once_file": """
def write(path):
    path.write_bytes(b"half" * 1000)
    print("ready", flush=True)
    time.sleep(600)
store.once_file("k", write)
""",
    "once": """
def compute():
    print("ready", flush=True)
    time.sleep(600)
store.once("k", Count, compute)
""",
}


class Count(Record):
    value: int


def start(script: str, home: Path, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PRELUDE + script, str(home), *map(str, arguments)]
    return subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True)


def write_whole(folder: Path) -> None:
    (folder / "a.bin").write_bytes(b"whole" * 1000)


@pytest.mark.parametrize("operation", KILLED)
def test_a_killed_process_leaves_nothing_visible_and_frees_its_locks(tmp_path, operation):
    home = tmp_path / "home"
    with start(KILLED[operation], home) as process:
        assert process.stdout.readline() == "ready\n"
        alive = list((home / "scratch").iterdir())
        Store(home)  # another process opening the store must not touch what a live one is writing
        assert list((home / "scratch").iterdir()) == alive
        process.send_signal(signal.SIGKILL)
    assert list((home / "scratch").iterdir()) == alive
    store = Store(home)
    assert not any((home / "scratch").iterdir())
    assert not any((home / "artifacts").iterdir())
    assert not any((home / "files").iterdir())
    artifact = store.seal(write_whole, kind="checkpoint")
    assert store.open(artifact.digest).size_bytes == 5000
    assert store.once_file(
        "k", lambda path: write_whole(path.parent) or (path.parent / "a.bin").rename(path)
    ).exists()
    assert store.once("k", Count, lambda: Count(value=1)) == (Count(value=1), False)


def test_processes_sealing_the_same_content_at_once_all_succeed(tmp_path):
    script = """
def build(folder):
    (folder / "a.bin").write_bytes(b"same" * 100_000)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(5):
    print(store.seal(build, kind="checkpoint", seed=_).digest)
"""
    command = [sys.executable, "-c", PRELUDE + script, str(tmp_path / "home")]
    processes = [
        subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert len(set(outputs)) == 1
    assert len(outputs[0].split()) == 5
    store = Store(tmp_path / "home")
    assert sorted(path.name for path in (store.home / "artifacts").iterdir()) == sorted(outputs[0].split())
    for digest in outputs[0].split():
        store.open(digest)


def test_processes_sharing_a_store_compute_a_result_once(tmp_path):
    script = """
def compute():
    with open(sys.argv[2], "a") as log:
        log.write("computed\\n")
    time.sleep(0.5)
    return Count(value=3)
print(store.once("k", Count, compute)[0].value)
"""
    processes = [start(script, tmp_path / "home", tmp_path / "log") for _ in range(4)]
    assert [process.communicate(timeout=60)[0] for process in processes] == ["3\n"] * 4
    assert (tmp_path / "log").read_text() == "computed\n"


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A 1 MiB tmpfs where mounting is allowed, else a limit of 300 kB on the size of any file."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0:
        try:
            yield
        finally:
            subprocess.run(["umount", str(folder)], check=True)
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Long(Record):
    text: str


def test_a_full_disk_is_a_clear_error_and_leaves_nothing_half_written(tmp_path):
    with small_disk(tmp_path / "disk"):
        store = Store(tmp_path / "disk" / "home")
        kept = store.seal(write_whole, kind="checkpoint")
        store.remember("k", Count(value=1))
        with pytest.raises(StoreError, match=r"cannot seal an artifact: no space left.*KEIRYO_HOME"):
            store.seal(
                lambda folder: (folder / "big").write_bytes(bytes(2_000_000)) and None, kind="checkpoint"
            )
        with pytest.raises(StoreError, match=r"cannot write big: no space left"):
            store.once_file("big", lambda path: path.write_bytes(bytes(2_000_000)) and None)
        with pytest.raises(StoreError, match=r"cannot remember k: no space left"):
            store.remember("k", Long(text="x" * 2_000_000))
        assert not any((store.home / "scratch").iterdir())
        assert not any((store.home / "files").iterdir())
        assert store.recall("k", Count) == Count(value=1)
        assert [path.name for path in (store.home / "artifacts").iterdir()] == [kept.digest]
        assert store.open(kept.digest) == kept
        small = store.seal(lambda folder: (folder / "ok").write_bytes(b"fits") and None, kind="checkpoint")
        assert store.open(small.digest) == small
