from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tiny_llama import EOS, TEXTS, as_artifact, tiny_llama

from configs.training import DistillSettings, TrainingSettings
from tasks.distillation.distill import distill
from tasks.distillation.student import block_influence, choose_layers
from tasks.store.artifact import Artifact
from tasks.training.checkpoint import load_model, load_tokenizer, save_checkpoint
from tasks.training.error import TrainingError
from tasks.training.layers import prune_layers
from tasks.training.losses import divergence


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny_llama(tmp_path_factory.mktemp("tiny"), layers=6)


def identity_layer(teacher: Artifact, layer: int, out: Path) -> Artifact:
    """The teacher with one block that changes nothing."""
    model = load_model(teacher.folder, torch.float32)
    block = model.model.layers[layer]
    block.self_attn.o_proj.weight.data.zero_()
    block.mlp.down_proj.weight.data.zero_()
    save_checkpoint(model, teacher.folder, out)
    return as_artifact(out)


def kl(model: torch.nn.Module, teacher: Artifact, texts: Sequence[str] = TEXTS[3:9]) -> float:
    """Nats a token over some documents, each alone after an EOS, as training packs them."""
    tokenizer, source = load_tokenizer(teacher.folder), load_model(teacher.folder, torch.float32)
    nats, tokens = 0.0, 0
    for text in texts:
        ids = torch.tensor([[EOS, *tokenizer(text)["input_ids"]]])
        with torch.no_grad():
            nats += divergence(model(input_ids=ids).logits[0], source(input_ids=ids).logits[0]).item()
        tokens += ids.numel()
    return nats / tokens


def test_a_block_that_does_nothing_has_no_influence_and_goes_first(teacher: Artifact, tmp_path: Path) -> None:
    idle = identity_layer(teacher, 3, tmp_path)
    influence = block_influence(idle, TEXTS)
    assert influence[3] == pytest.approx(0, abs=1e-6)
    assert min(influence[:3] + influence[4:]) > 0.001
    assert choose_layers(idle, 0.9, TEXTS) == (0, 1, 2, 4, 5)
    assert choose_layers(idle, 0.34, TEXTS) == (0, 5)  # the first and the last are always kept


def test_without_the_idle_block_the_pruned_checkpoint_says_the_same(
    teacher: Artifact, tmp_path: Path
) -> None:
    idle = identity_layer(teacher, 3, tmp_path / "idle")
    prune_layers(idle, (0, 1, 2, 4, 5), tmp_path / "student")

    student = load_model(tmp_path / "student", torch.float32)
    assert student.config.num_hidden_layers == len(student.model.layers) == 5
    assert student.lm_head.weight is student.model.embed_tokens.weight
    ids = torch.arange(2, 30)[None]
    with torch.no_grad():
        expected = load_model(idle.folder, torch.float32)(input_ids=ids).logits
        torch.testing.assert_close(student(input_ids=ids).logits, expected, atol=1e-5, rtol=0)
        cached = student.generate(ids, max_new_tokens=8, do_sample=False, use_cache=True)
        plain = student.generate(ids, max_new_tokens=8, do_sample=False, use_cache=False)
    assert torch.equal(cached, plain)
    assert {f.name for f in (tmp_path / "student").iterdir()} == {f.name for f in idle.folder.iterdir()}


@pytest.mark.parametrize("keep", [(), (1, 0), (0, 0, 1), (0, 6), (-1, 2)])
def test_layers_that_cannot_be_kept(keep: tuple[int, ...], teacher: Artifact, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"must increase within 0\.\.5"):
        prune_layers(teacher, keep, tmp_path)


def test_the_student_comes_closer_to_its_teacher(teacher: Artifact, tmp_path: Path) -> None:
    start = tmp_path / "start"
    prune_layers(teacher, (0, 1, 3, 5), start)
    training = TrainingSettings(
        steps=120,
        batch_sequences=4,
        sequence_tokens=32,
        learning_rate=2e-3,
        autocast="none",
        checkpoint_steps=20,
    )
    settings = DistillSettings(training=training, alpha=0.0)
    log = distill(teacher, as_artifact(start), TEXTS, settings, tmp_path / "out", tmp_path / "scratch")

    student = load_model(tmp_path / "out", "auto")
    pruned = load_model(start, torch.float32)
    assert kl(student, teacher) < 0.5 * kl(pruned, teacher)
    joined = [" ".join(TEXTS[3:9])]  # longer than any sequence that was trained on
    assert kl(student, teacher, joined) < 0.5 * kl(pruned, teacher, joined)
    assert log.losses[-1] < log.losses[0]
    assert student.dtype == torch.float32
    embedding = load_model(teacher.folder, torch.float32).model.embed_tokens.weight
    assert torch.equal(student.model.embed_tokens.weight, embedding)
    assert student.lm_head.weight is student.model.embed_tokens.weight
