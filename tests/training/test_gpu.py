"""Training on an NVIDIA GPU: what the processor learns, with the GPU's own kernels and memory."""

import importlib.util
from pathlib import Path

import pytest
import torch
from tiny_llama import TEXTS, tiny_llama

from configs.training import LoraSettings, TrainingSettings
from tasks.adaptation.lora import train_adapter
from tasks.store.artifact import Artifact
from tasks.training import device, loop
from tasks.training.log import TrainingLog

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
TRAINING = TrainingSettings(
    steps=6, batch_sequences=2, sequence_tokens=32, learning_rate=1e-2, autocast="none"
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny_llama(tmp_path_factory.mktemp("tiny"))


def learned(
    tiny: Artifact, folder: Path, lora: LoraSettings, training: TrainingSettings = TRAINING
) -> TrainingLog:
    folder.mkdir()
    return train_adapter(tiny, TEXTS, lora, training, folder, folder.with_suffix(".scratch"))


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_it_learns_what_the_processor_learns(
    method: str, tiny: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = LoraSettings.model_validate({"method": method, "rank": 4})
    there = learned(tiny, tmp_path / "gpu", lora)
    for module in (device, loop):
        monkeypatch.setattr(module, "training_device", lambda: "cpu")
    here = learned(tiny, tmp_path / "cpu", lora)
    assert there.losses == pytest.approx(here.losses, rel=1e-3)
    assert there.losses[-1] < there.losses[0]


@pytest.mark.parametrize("optimizer_bits", [32, 8])
def test_qlora_in_bf16_with_loftq(optimizer_bits: int, tiny: Artifact, tmp_path: Path) -> None:
    training = TRAINING.model_copy(update={"autocast": "bf16", "optimizer_bits": optimizer_bits})
    lora = LoraSettings.model_validate({"method": "qlora", "rank": 4, "init": "loftq"})
    log = learned(tiny, tmp_path / "out", lora, training)
    assert log.losses[-1] < log.losses[0]
    assert log.peak_mib > 0


@pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="liger-kernel is not installed")
def test_liger_learns_the_same(tiny: Artifact, tmp_path: Path) -> None:
    losses = {
        name: learned(
            tiny, tmp_path / name, LoraSettings.model_validate({"method": "lora", "kernels": name})
        ).losses
        for name in ("none", "liger")
    }
    assert losses["liger"] == pytest.approx(losses["none"], rel=1e-3)
