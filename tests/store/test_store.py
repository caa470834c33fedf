import json
import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.store.digest import PROJECT_ROOT
from tasks.store.errors import DamagedArtifact, MissingArtifact, StoreError
from tasks.store.record import Record
from tasks.store.store import Store, store_home


class Score(Record):
    name: str
    value: float
    parts: tuple[int, ...] = ()


class OtherScore(Record):
    points: int


def write_model(folder: Path) -> None:
    (folder / "weights").mkdir()
    (folder / "weights" / "a.bin").write_bytes(bytes(range(256)) * 400)
    (folder / "config.json").write_text("{}")


def seal(store: Store):
    return store.seal(write_model, kind="checkpoint", recipe={"bits": 4, "groups": (64, 32)}, seed=7)


def in_new_process(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=60)


OPEN = """
import sys
from pathlib import Path
from tasks.store.store import Store
Store(Path(sys.argv[1])).open(sys.argv[2])
"""


def test_sealing_is_addressed_by_content_and_survives_reopening(store):
    artifact = seal(store)
    assert seal(store) == artifact
    assert store.open(artifact.digest) == artifact == Store(store.home).open(artifact.digest)
    assert artifact.size_bytes == 102_402
    assert [entry.path for entry in artifact.manifest.files] == ["config.json", "weights/a.bin"]
    other = store.seal(write_model, kind="checkpoint", recipe={"bits": 8})
    assert other.digest != artifact.digest
    assert list((store.home / "scratch").iterdir()) == []


def test_the_address_can_be_recomputed_with_sha256sum(store):
    import hashlib

    artifact = seal(store)
    assert hashlib.sha256((artifact.folder / "manifest.json").read_bytes()).hexdigest() == artifact.digest


def alter(path: Path, new: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(new)


def flip_bit(folder: Path) -> None:
    old = (folder / "weights/a.bin").read_bytes()
    alter(folder / "weights/a.bin", old[:70_000] + bytes([old[70_000] ^ 1]) + old[70_001:])


DAMAGES = {
    "bit flip": (flip_bit, "weights/a.bin: expected sha256"),
    "truncation": (lambda f: os.truncate(f / "weights/a.bin", 5), "expected 102400 bytes, found 5"),
    "missing": (lambda f: (f / "config.json").unlink(), "config.json: expected 2 bytes, found no file"),
    "extra": (lambda f: (f / "extra.py").write_text(""), "extra.py: expected no such file"),
    "manifest": (
        lambda f: alter(f / "manifest.json", b'{"kind":"checkpoint"}'),
        "manifest.json: expected sha256",
    ),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "expected the manifest, found none"),
}


def swap_for_link(folder: Path) -> None:
    (folder / "config.json").rename(folder.parent / "elsewhere.json")
    (folder / "config.json").symlink_to(folder.parent / "elsewhere.json")


DAMAGES["link"] = (swap_for_link, "config.json is a link")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("fresh", [False, True], ids=["same process", "new process"])
def test_a_damaged_artifact_is_never_served_and_can_be_rebuilt(store, damage, fresh):
    artifact = seal(store)
    inflict, message = DAMAGES[damage]
    store.open(artifact.digest)
    inflict(artifact.folder)
    if fresh:
        done = in_new_process(OPEN, store.home, artifact.digest)
        assert "DamagedArtifact" in done.stderr
        assert message in done.stderr
    else:
        with pytest.raises(DamagedArtifact, match=message.replace(".", r"\.")):
            store.open(artifact.digest)
    assert not artifact.folder.exists()
    assert len(list((store.home / "quarantine").iterdir())) == 1
    with pytest.raises(MissingArtifact, match=artifact.digest):
        store.open(artifact.digest)
    assert seal(store) == artifact
    assert in_new_process(OPEN, store.home, artifact.digest).returncode == 0


def test_sealing_over_a_damaged_artifact_replaces_it(store):
    artifact = seal(store)
    flip_bit(artifact.folder)
    assert seal(store) == artifact
    assert store.open(artifact.digest) == artifact


def test_an_unchanged_artifact_is_hashed_once_a_process(store, monkeypatch):
    artifact = seal(store)
    monkeypatch.setattr(
        "tasks.store.verification.sha256_file", lambda path: pytest.fail(f"read {path} again")
    )
    store.open(artifact.digest)
    Store(store.home).open(artifact.digest)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda folder: None, "wrote no file"),
        (lambda folder: (folder / "a").symlink_to("/etc/hostname"), "is a link"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "must not be named"),
    ],
)
def test_what_cannot_be_sealed_is_refused(store, build, message):
    with pytest.raises(StoreError, match=message):
        store.seal(build, kind="adapter")
    assert not any((store.home / "artifacts").iterdir())


def test_a_failed_build_leaves_nothing(store):
    def build(folder: Path) -> None:
        (folder / "half").write_bytes(b"x" * 1000)
        raise RuntimeError("build failed")

    with pytest.raises(RuntimeError, match="build failed"):
        store.seal(build, kind="openvino")
    assert not any((store.home / "artifacts").iterdir())
    assert not any((store.home / "scratch").iterdir())


def test_results_are_remembered_across_stores(store):
    calls = []

    def compute() -> Score:
        calls.append(1)
        return Score(name="é", value=0.1 + 0.2, parts=(1, 2))

    first, found = store.once("score-1", Score, compute)
    assert not found
    again, found = Store(store.home).once("score-1", Score, compute)
    assert found
    assert again == first
    assert len(calls) == 1
    assert store.recall("score-2", Score) is None
    store.remember("score-1", Score(name="new", value=1.0))
    assert store.recall("score-1", Score) == Score(name="new", value=1.0)


RESULT_DAMAGES = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: path.write_bytes(b""),
    "altered value": lambda path: path.write_text(path.read_text().replace("0.5", "0.6")),
    "not an object": lambda path: path.write_text("[1, 2]"),
    "not text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("damage", RESULT_DAMAGES)
def test_a_damaged_result_is_computed_again(store, damage, caplog):
    store.remember("k", Score(name="a", value=0.5))
    RESULT_DAMAGES[damage](store.home / "results" / "k.json")
    with caplog.at_level(logging.WARNING):
        record, found = store.once("k", Score, lambda: Score(name="b", value=0.25))
    assert not found
    assert record.name == "b"
    assert "k.json is damaged" in caplog.text
    assert len(list((store.home / "quarantine").iterdir())) == 1
    assert store.recall("k", Score) == record


def test_a_record_of_another_shape_is_not_half_read(store, caplog):
    store.remember("k", Score(name="a", value=0.5))
    with caplog.at_level(logging.WARNING):
        assert store.recall("k", OtherScore) is None
    assert "not a OtherScore" in caplog.text


@pytest.mark.parametrize("key", ["", "../up", "a/b", ".hidden", "x" * 300])
def test_a_key_that_is_no_file_name_is_refused(store, key):
    with pytest.raises(StoreError, match="is no key"):
        store.remember(key, OtherScore(points=1))


def test_large_files_are_written_once_and_again_when_their_size_differs(store, caplog):
    calls = []

    def write(path: Path) -> None:
        calls.append(path)
        path.write_bytes(b"x" * 5000)

    path = store.once_file("logits-1.npy", write)
    assert path.name == "logits-1.npy"
    assert store.once_file("logits-1.npy", write) == path
    assert len(calls) == 1
    os.truncate(path, 100)
    assert store.once_file("logits-1.npy", write).stat().st_size == 5000
    assert len(calls) == 2
    assert "size differs" in caplog.text
    with pytest.raises(StoreError, match=r"expected one file other, found \['other.npy'\]"):
        store.once_file("other", lambda path: path.with_suffix(".npy").write_bytes(b"") and None)


def test_a_remembered_artifact_is_rebuilt_when_it_is_damaged(store, caplog):
    first, found = store.once_artifact("export-1", lambda: seal(store))
    assert not found
    assert store.once_artifact("export-1", lambda: pytest.fail("built twice")) == (first, True)
    flip_bit(first.folder)
    again, found = store.once_artifact("export-1", lambda: seal(store))
    assert not found
    assert again == first
    assert "building it again" in caplog.text


def test_threads_compute_a_key_once(store):
    import time

    calls = []

    def compute() -> Score:
        calls.append(1)
        time.sleep(0.1)
        return Score(name="slow", value=1)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: Store(store.home).once("slow", Score, compute), range(8)))
    assert len(calls) == 1
    assert sum(found for _, found in results) == 7


def test_the_home_is_the_environment_variable_or_the_working_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KEIRYO_HOME", raising=False)
    assert store_home() == tmp_path / ".keiryo"
    monkeypatch.setenv("KEIRYO_HOME", "elsewhere")
    assert store_home() == tmp_path / "elsewhere"


def test_a_result_file_is_plain_json_with_its_checksum(store):
    from tasks.store.digest import digest_of

    record = OtherScore(points=3)
    store.remember("k", record)
    assert json.loads((store.home / "results" / "k.json").read_text()) == {
        "record": {"points": 3},
        "sha256": digest_of(record),
    }
