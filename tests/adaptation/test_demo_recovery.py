"""A few steps of recovery of the real demo model: the divergence of the int4 weights falls."""

from pathlib import Path

import pytest
import torch

from configs.quality import TextSettings
from configs.training import TrainingSettings
from configs.weights import WeightSettings
from tasks.adaptation.recovery import recover
from tasks.adaptation.rounding import rounded
from tasks.data.text import split_text
from tasks.store.artifact import Artifact
from tasks.training.checkpoint import load_model, load_tokenizer
from tasks.training.losses import divergence

pytestmark = pytest.mark.model

INT4 = WeightSettings(bits=4, symmetric=True, group_size=64)


def test_four_steps_lower_the_divergence_of_int4(demo_checkpoint: Artifact, tmp_path: Path) -> None:
    splits = split_text(TextSettings(source="pydoc"), seed=0)
    tokenizer = load_tokenizer(demo_checkpoint.folder)
    inputs = [torch.tensor([tokenizer(section.text)["input_ids"]]) for section in splits.search[:2]]

    def logits(folder: Path, int4: bool) -> list[torch.Tensor]:
        model = load_model(folder, torch.float32)
        for name, module in model.named_modules():
            if int4 and isinstance(module, torch.nn.Linear) and name != "lm_head":
                module.weight.data = rounded(module.weight, INT4.bits, INT4.symmetric, INT4.group_size)
        with torch.no_grad():
            return [model(input_ids=ids).logits[0] for ids in inputs]

    def kl(student: list[torch.Tensor], teacher: list[torch.Tensor]) -> float:
        total = sum(divergence(a, b).item() for a, b in zip(student, teacher, strict=True))
        return total / sum(ids.numel() for ids in inputs)

    training = TrainingSettings(
        autocast="bf16", steps=4, batch_sequences=4, sequence_tokens=64, checkpoint_steps=50
    )
    texts = [section.text for section in splits.train]
    log = recover(demo_checkpoint, texts, INT4, training, tmp_path / "out", tmp_path / "scratch")

    teacher = logits(demo_checkpoint.folder, int4=False)
    before = kl(logits(demo_checkpoint.folder, int4=True), teacher)
    after = kl(logits(tmp_path / "out", int4=True), teacher)
    print(f"KL {before:.3f} -> {after:.3f} nats, {log.tokens_per_s:.0f} tokens/s, {log.peak_mib:.0f} MiB")
    assert after < 0.9 * before
    assert log.peak_mib < 2.5 * 1024
