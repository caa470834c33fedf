"""A few steps of distillation of the real demo model: the student beats its own pruned start."""

from pathlib import Path

import pytest
import torch
from tiny_llama import as_artifact

from configs.quality import TextSettings
from configs.training import DistillSettings, TrainingSettings
from tasks.data.text import split_text
from tasks.distillation.distill import distill
from tasks.distillation.student import choose_layers
from tasks.store.artifact import Artifact
from tasks.training.checkpoint import load_model, load_tokenizer
from tasks.training.layers import prune_layers

pytestmark = pytest.mark.model


def test_a_student_of_three_quarters_of_the_layers(demo_checkpoint: Artifact, tmp_path: Path) -> None:
    splits = split_text(TextSettings(source="pydoc"), seed=0)
    texts = [section.text for section in splits.train]
    keep = choose_layers(demo_checkpoint, 0.75, [section.text for section in splits.calibration])
    assert len(keep) == 22
    start = tmp_path / "start"
    prune_layers(demo_checkpoint, keep, start)
    training = TrainingSettings(
        autocast="bf16", steps=4, batch_sequences=4, sequence_tokens=96, checkpoint_steps=10
    )
    settings = DistillSettings(training=training)
    log = distill(
        demo_checkpoint, as_artifact(start), texts, settings, tmp_path / "out", tmp_path / "scratch"
    )

    def loss(folder: Path) -> float:
        ids = torch.tensor([load_tokenizer(folder)(splits.search[0].text)["input_ids"]])
        with torch.no_grad():
            return float(load_model(folder, torch.bfloat16)(input_ids=ids, labels=ids).loss)

    assert loss(tmp_path / "out") < loss(start) - 0.1
    assert (tmp_path / "out" / "model.safetensors").stat().st_size < 0.81 * (
        demo_checkpoint.folder / "model.safetensors"
    ).stat().st_size
    assert log.peak_mib < 2.5 * 1024
