import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from killed_training import batch_loss
from tiny_llama import TEXTS, tiny_llama

from configs.training import TrainingSettings
from tasks.serving.memory_peak import MemoryPeak
from tasks.store.artifact import Artifact
from tasks.store.errors import StoreError
from tasks.training.checkpoint import load_model, load_tokenizer
from tasks.training.checkpoint_disk import checkpoint_bytes
from tasks.training.log import TrainingLog
from tasks.training.loop import train
from tasks.training.packing import pack

Usage = namedtuple("Usage", ("total", "used", "free"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny_llama(tmp_path_factory.mktemp("tiny"))


def run(tiny: Artifact, scratch: Path, bits: int = 32) -> TrainingLog:
    settings = TrainingSettings(
        autocast="bf16",
        steps=4,
        checkpoint_steps=2,
        batch_sequences=2,
        sequence_tokens=32,
        optimizer_bits=bits,
    )
    text = pack(TEXTS, load_tokenizer(tiny.folder), 32, settings.steps * 2, seed=0)
    with MemoryPeak() as memory:
        model = load_model(tiny.folder, torch.float32)
        return train(model, text, settings, batch_loss, scratch, memory, text)


@pytest.mark.parametrize("bits", [32, 8])
def test_the_size_of_a_checkpoint_is_known_before_it_is_written(
    tiny: Artifact, tmp_path: Path, bits: int
) -> None:
    run(tiny, tmp_path, bits)

    written = sum(file.stat().st_size for file in (tmp_path / "checkpoint-4").iterdir())
    # Headers, the trainer's state and quantile maps of 1 KiB a tensor come on top: nothing beside the weights of a real model.
    assert 0 <= written - checkpoint_bytes(load_model(tiny.folder, torch.float32), bits) < 80_000


def test_training_is_refused_where_its_checkpoints_do_not_fit(
    tiny: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = checkpoint_bytes(load_model(tiny.folder, torch.float32), 32)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 0, 2 * one))

    with pytest.raises(
        StoreError,
        match=r"checkpoint_steps of the training is 2: its checkpoints need \d+ MiB under .*, \d+ MiB are free; free some",
    ):
        run(tiny, tmp_path)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_disk_that_fills_up_ends_training_before_the_next_checkpoint(
    tiny: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def filling(folder: Path) -> Usage:
        return Usage(10**9, 0, 1000 if (Path(folder) / "checkpoint-2").exists() else 10**9)

    monkeypatch.setattr(shutil, "disk_usage", filling)
    with pytest.raises(StoreError, match="checkpoints need"):
        run(tiny, tmp_path)
    assert [folder.name for folder in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]

    monkeypatch.undo()
    assert run(tiny, tmp_path).steps == 4  # resumed from it
