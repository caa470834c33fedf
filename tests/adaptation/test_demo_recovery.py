"""A few steps of recovery of the real demo model: with other scales GPTQ's integers diverge less on text that nothing has read."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from configs.quality import TextSettings
from configs.training import TrainingSettings
from configs.weights import WeightSettings
from tasks.adaptation.recovery import recover, use_grids
from tasks.compression.build import rounded_grids
from tasks.compression.grid import Grid, load_grids
from tasks.data.text import split_text
from tasks.store.artifact import Artifact
from tasks.store.store import Store
from tasks.training.checkpoint import load_model, load_tokenizer
from tasks.training.losses import divergence

pytestmark = pytest.mark.model

INT4 = WeightSettings(bits=4, symmetric=False, group_size=64, calibration="gptq", calibration_samples=8)
TRAINING = TrainingSettings(
    autocast="bf16", steps=12, batch_sequences=4, sequence_tokens=64, learning_rate=1e-3, checkpoint_steps=50
)


def test_twelve_steps_lower_the_divergence_of_int4(
    demo_checkpoint: Artifact, shared_store: Store, tmp_path: Path
) -> None:
    splits = split_text(TextSettings(source="pydoc"), seed=0)
    tokenizer = load_tokenizer(demo_checkpoint.folder)
    inputs = [torch.tensor([tokenizer(section.text)["input_ids"]]) for section in splits.search[:4]]

    def logits(grids: Mapping[str, Grid]) -> list[torch.Tensor]:
        model = load_model(demo_checkpoint.folder, torch.float32)
        use_grids(model, grids)
        with torch.no_grad():
            return [model(input_ids=ids).logits[0] for ids in inputs]

    def kl(student: list[torch.Tensor], teacher: list[torch.Tensor]) -> float:
        total = sum(divergence(a, b).item() for a, b in zip(student, teacher, strict=True))
        return total / sum(ids.numel() for ids in inputs)

    calibration = [section.text for section in splits.calibration]
    start = rounded_grids(shared_store, demo_checkpoint, "openvino", INT4, calibration).folder
    texts = [section.text for section in splits.train]
    log = recover(demo_checkpoint, start, texts, TRAINING, tmp_path, tmp_path / "scratch")

    teacher = logits({})
    before, after = kl(logits(load_grids(start)), teacher), kl(logits(load_grids(tmp_path)), teacher)
    print(f"KL {before:.4f} -> {after:.4f} nats, {log.tokens_per_s:.0f} tokens/s, {log.peak_mib:.0f} MiB")
    assert after < 0.98 * before
    assert log.peak_mib < 2.5 * 1024
