"""A few steps of recovery of the real demo model: the divergence of the int4 weights that are served falls."""

from pathlib import Path

import pytest
import torch

from configs.quality import TextSettings
from configs.schema import TrainingSettings
from configs.weights import WeightSettings
from tasks.adaptation.recovery import make_trainable, recover
from tasks.compression.build import build_artifact
from tasks.compression.served_grids import served_grids
from tasks.data.text import split_text
from tasks.store.artifact import Artifact
from tasks.store.store import Store
from tasks.training.checkpoint import load_model, load_tokenizer
from tasks.training.losses import divergence

pytestmark = pytest.mark.model

INT4 = WeightSettings(bits=4, symmetric=True, group_size=64)


def test_four_steps_lower_the_divergence_of_int4(
    demo_checkpoint: Artifact, shared_store: Store, tmp_path: Path
) -> None:
    splits = split_text(TextSettings(source="pydoc"), seed=0)
    tokenizer = load_tokenizer(demo_checkpoint.folder)
    inputs = [torch.tensor([tokenizer(section.text)["input_ids"]]) for section in splits.search[:2]]

    def logits(model: torch.nn.Module) -> list[torch.Tensor]:
        with torch.no_grad():
            return [model(input_ids=ids).logits[0] for ids in inputs]

    def kl(student: list[torch.Tensor], teacher: list[torch.Tensor]) -> float:
        total = sum(divergence(a, b).item() for a, b in zip(student, teacher, strict=True))
        return total / sum(ids.numel() for ids in inputs)

    artifact = build_artifact(shared_store, demo_checkpoint, "openvino", INT4, ())
    grids = served_grids(shared_store, artifact, INT4)
    served = load_model(demo_checkpoint.folder, torch.float32)
    teacher = logits(served)
    make_trainable(served, grids)
    before = kl(logits(served), teacher)
    del served

    training = TrainingSettings(
        steps=4, batch_sequences=4, sequence_tokens=64, checkpoint_steps=50, learning_rate=1e-3
    )
    texts = [section.text for section in splits.train]
    (tmp_path / "out").mkdir()
    log = recover(demo_checkpoint, texts, lambda: grids, training, tmp_path / "out", tmp_path / "scratch")

    after = kl(logits(load_model(tmp_path / "out", torch.float32)), teacher)
    print(f"KL {before:.3f} -> {after:.3f} nats, {log.tokens_per_s:.0f} tokens/s, {log.peak_mib:.0f} MiB")
    assert after < 0.9 * before
    assert log.peak_mib < 2.5 * 1024
