"""The state with the least held-out loss is kept; training ends where that stops falling, and survives what is not finite."""

import math
from pathlib import Path

import pytest
import torch
from killed_training import batch_loss
from tiny_llama import TEXTS, tiny_llama

from configs.training import TrainingSettings
from tasks.serving.memory_peak import MemoryPeak
from tasks.store.artifact import Artifact
from tasks.training.checkpoint import load_model, load_tokenizer
from tasks.training.error import TrainingError
from tasks.training.log import TrainingLog
from tasks.training.loop import BatchLoss, train
from tasks.training.packing import PackedText, pack, pack_held_out

SETTINGS = TrainingSettings(
    autocast="bf16",
    steps=12,
    batch_sequences=2,
    sequence_tokens=32,
    learning_rate=3e-3,
    warmup_fraction=0,
    checkpoint_steps=2,
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny_llama(tmp_path_factory.mktemp("tiny"))


def run(
    tiny: Artifact, scratch: Path, settings: TrainingSettings = SETTINGS, loss: BatchLoss = batch_loss
) -> tuple[TrainingLog, torch.nn.Module, PackedText]:
    tokenizer, model = load_tokenizer(tiny.folder), load_model(tiny.folder, torch.float32)
    text = pack(TEXTS[:12], tokenizer, 32, settings.steps * 2, seed=0)
    held_out = pack_held_out(TEXTS[12:], tokenizer, 32)
    assert held_out is not None
    with MemoryPeak() as memory:
        return train(model, text, settings, loss, scratch, memory, held_out), model, held_out


def loss_on(model: torch.nn.Module, text: PackedText, settings: TrainingSettings = SETTINGS) -> float:
    device = model.device  # a GPU where there is one
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=settings.autocast == "bf16"):
        return batch_loss(model, text.tokens.to(device), text.positions.to(device)).item()


def test_looks_before_the_first_step_at_every_checkpoint_and_at_the_end(
    tiny: Artifact, tmp_path: Path
) -> None:
    log, model, held_out = run(tiny, tmp_path / "scratch")
    assert list(log.held_out_losses) == [0, 2, 4, 6, 8, 10, 12]
    assert log.kept_step == min(log.held_out_losses, key=log.held_out_losses.__getitem__)
    assert log.held_out_losses[log.kept_step] < log.held_out_losses[0] - 0.5
    assert loss_on(model, held_out) == pytest.approx(log.held_out_losses[log.kept_step], rel=1e-2)
    assert (log.steps, log.stopped) == (12, "")


def test_it_ends_where_nothing_is_gained_any_more_and_keeps_the_best(tiny: Artifact, tmp_path: Path) -> None:
    """A learning rate so high that every step does harm."""
    settings = SETTINGS.model_copy(update={"learning_rate": 1.0, "patience": 2})
    log, model, held_out = run(tiny, tmp_path / "scratch", settings)
    assert (log.steps, log.kept_step) == (4, 0)
    assert log.stopped == "the held-out loss has not fallen for 2 looks"
    assert log.tokens == 4 * 2 * 32
    assert loss_on(model, held_out) == pytest.approx(log.held_out_losses[0], rel=1e-3)


def test_a_loss_that_is_not_finite_leaves_the_last_good_state(tiny: Artifact, tmp_path: Path) -> None:
    def breaks_at(step: int) -> BatchLoss:
        calls = 0

        def loss(model: torch.nn.Module, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += torch.is_grad_enabled()
            found = batch_loss(model, tokens, positions)
            return found * math.nan if torch.is_grad_enabled() and calls > step else found

        return loss

    log, model, held_out = run(tiny, tmp_path / "late", loss=breaks_at(5))
    assert (log.steps, log.kept_step) == (5, 4)
    assert log.stopped.startswith("the loss at step 5 is nan; lower")
    assert loss_on(model, held_out) == pytest.approx(log.held_out_losses[4], rel=1e-2)
    with pytest.raises(TrainingError, match="the loss at step 1 is nan"):
        run(tiny, tmp_path / "early", loss=breaks_at(1))


def test_a_run_that_was_killed_goes_on_with_its_looks(tiny: Artifact, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def dies(model: torch.nn.Module, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        nonlocal left
        left -= torch.is_grad_enabled()
        if left < 0:
            raise Killed
        return batch_loss(model, tokens, positions)

    left = 7
    with pytest.raises(Killed):
        run(tiny, tmp_path / "killed", loss=dies)
    after, _, _ = run(tiny, tmp_path / "killed")
    undisturbed, _, _ = run(tiny, tmp_path / "undisturbed")
    assert after.held_out_losses == pytest.approx(undisturbed.held_out_losses, rel=1e-6)
    assert after.kept_step == undisturbed.kept_step
