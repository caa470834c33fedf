import os
import signal
import subprocess
import sys
from pathlib import Path

import killed_training
import pytest
import torch
from killed_training import batch_loss, train_tiny
from tiny_llama import TEXTS, tiny_llama

from configs.training import TrainingSettings
from tasks.serving.memory_peak import MemoryPeak
from tasks.store.artifact import Artifact
from tasks.training.checkpoint import load_model, load_tokenizer
from tasks.training.error import TrainingError
from tasks.training.log import TrainingLog
from tasks.training.loop import BatchLoss, train
from tasks.training.packing import pack

SETTINGS = TrainingSettings(
    autocast="bf16", steps=8, batch_sequences=2, sequence_tokens=32, learning_rate=3e-3, warmup_fraction=0.25
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny_llama(tmp_path_factory.mktemp("tiny"))


def run(tiny: Artifact, scratch: Path, loss: BatchLoss = batch_loss) -> TrainingLog:
    text = pack(TEXTS, load_tokenizer(tiny.folder), 32, SETTINGS.steps * 2, seed=0)
    with MemoryPeak() as memory:
        return train(load_model(tiny.folder, torch.float32), text, SETTINGS, loss, scratch, memory)


def test_the_loss_falls_and_the_log_says_what_was_done(
    tiny: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = run(tiny, tmp_path / "scratch")

    assert (log.steps, log.tokens, len(log.losses)) == (8, 8 * 2 * 32, 8)
    assert log.losses[-1] < log.losses[0] - 0.5
    peak = SETTINGS.learning_rate  # up over two steps, then down over six
    expected = [peak / 3, peak * 2 / 3, *(peak * (1 - step / 6) for step in range(6))]
    assert log.learning_rates == pytest.approx(expected)
    assert log.tokens_per_s == pytest.approx(log.tokens / log.seconds)
    assert log.peak_mib > 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("bits", [32, 8])
def test_killed_while_saving_and_started_again_it_ends_at_the_same_loss(
    tiny: Artifact, tmp_path: Path, bits: int
) -> None:
    texts = tmp_path / "texts"
    texts.write_text("\n".join(TEXTS))
    root = Path(__file__).parents[2]
    command = [
        sys.executable,
        killed_training.__file__,
        str(tiny.folder),
        str(texts),
        str(tmp_path / "scratch"),
        "6",
        str(bits),
    ]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    killed = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment)

    assert killed.returncode == -signal.SIGKILL, killed.stderr
    saved = {folder.name for folder in (tmp_path / "scratch").iterdir()}
    assert saved == {"checkpoint-4", "checkpoint-6"}  # the second is incomplete
    after = train_tiny(tiny.folder, TEXTS, tmp_path / "scratch", bits)
    before = train_tiny(tiny.folder, TEXTS, tmp_path / "undisturbed", bits)
    assert after.losses == pytest.approx(before.losses, rel=1e-6)
    assert len(after.losses) == 9
    assert after.seconds * after.tokens_per_s == pytest.approx(5 * 64)  # steps 5 to 9
    state = torch.load(next((tmp_path / "undisturbed").glob("*/optimizer.pt")), weights_only=True)["state"]
    moments = [each.get("__bnb_optimizer_quant_state__", each) for each in state.values()]
    stored = {value.dtype for each in moments for value in each.values() if getattr(value, "ndim", 0) == 2}
    assert (torch.uint8 in stored) == (bits == 8)


def test_states_of_8_bits_train_as_well(tiny: Artifact, tmp_path: Path) -> None:
    losses = {bits: train_tiny(tiny.folder, TEXTS, tmp_path / str(bits), bits).losses for bits in (32, 8)}
    assert losses[8] != losses[32]
    assert losses[8][0] - losses[8][-1] == pytest.approx(losses[32][0] - losses[32][-1], rel=0.05)


def test_a_loss_or_gradient_that_is_not_finite_stops_training(tiny: Artifact, tmp_path: Path) -> None:
    def not_a_number(model: torch.nn.Module, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return batch_loss(model, tokens, positions) * float("nan")

    class Steep(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, loss: torch.Tensor) -> torch.Tensor:
            return loss.clone()

        @staticmethod
        def backward(ctx: object, slope: torch.Tensor) -> torch.Tensor:
            return slope * float("inf")

    def steep(model: torch.nn.Module, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return Steep.apply(batch_loss(model, tokens, positions))

    with pytest.raises(TrainingError, match="the loss at step 0 is nan; lower"):
        run(tiny, tmp_path / "a", not_a_number)
    with pytest.raises(TrainingError, match="the gradient norm at step 1 is"):
        run(tiny, tmp_path / "b", steep)
