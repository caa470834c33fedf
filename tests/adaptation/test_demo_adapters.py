"""Three steps of each method on the real demo model: the held-out loss falls."""

from pathlib import Path

import pytest
import torch

from configs.quality import TextSettings
from configs.training import LoraSettings, TrainingSettings
from tasks.adaptation.lora import merge_adapter, train_adapter
from tasks.data.text import split_text
from tasks.store.artifact import Artifact
from tasks.training.checkpoint import load_model, load_tokenizer

pytestmark = pytest.mark.model

SPLITS = split_text(TextSettings(source="pydoc"), seed=0)
TRAINING = TrainingSettings(
    autocast="bf16", steps=3, batch_sequences=4, sequence_tokens=64, learning_rate=1e-3
)


def held_out_loss(folder: Path) -> float:
    """Mean over the tokens of two search sections, nats."""
    tokenizer, model = load_tokenizer(folder), load_model(folder, torch.bfloat16)
    total, count = 0.0, 0
    for section in SPLITS.search[:2]:
        ids = torch.tensor([tokenizer(section.text)["input_ids"]])
        with torch.no_grad():
            total += model(input_ids=ids, labels=ids).loss.item() * (ids.numel() - 1)
        count += ids.numel() - 1
    return total / count


@pytest.fixture(scope="module")
def before(demo_checkpoint: Artifact) -> float:
    return held_out_loss(demo_checkpoint.folder)


@pytest.mark.parametrize("method", ["lora", "qlora", "dora"])
def test_three_steps_lower_the_held_out_loss(
    method: str, demo_checkpoint: Artifact, before: float, tmp_path: Path
) -> None:
    lora = LoraSettings.model_validate({"method": method})
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    adapter.mkdir()
    texts = [section.text for section in SPLITS.train]
    log = train_adapter(demo_checkpoint, texts, lora, TRAINING, adapter, tmp_path / "scratch")
    merge_adapter(demo_checkpoint, adapter, merged)

    assert held_out_loss(merged) < before - 0.01
    assert log.peak_mib < 2.5 * 1024
