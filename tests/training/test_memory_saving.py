"""The memory of training: the fastest way that fits is taken, and each way takes what the closed form says."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_llama import TEXTS, tiny_llama

from configs.training import LoraSettings, TrainingSettings
from tasks.adaptation.lora import train_adapter
from tasks.adaptation.recovery import recover
from tasks.compression.grid import Grid, save_grids
from tasks.models.checkpoint import Architecture, read_architecture
from tasks.profiling.matrices import Matrix, layer_names, linear_matrices
from tasks.profiling.training_memory import trained_scales
from tasks.training import device, loop, memory_saving
from tasks.training.error import TrainingError
from tasks.training.memory_saving import choose_saving, giving_back, predicted_mib

ROOT = Path(__file__).resolve().parents[2]
LORA = LoraSettings(method="lora", rank=4)
TRAINING = TrainingSettings(
    steps=3, batch_sequences=2, sequence_tokens=32, learning_rate=1e-2, autocast="none"
)


@pytest.fixture(scope="module")
def architecture(tmp_path_factory: pytest.TempPathFactory) -> Architecture:
    return read_architecture(tiny_llama(tmp_path_factory.mktemp("tiny") / "m"))


@pytest.fixture
def on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (device, loop, memory_saving):
        monkeypatch.setattr(module, "training_device", lambda: "cpu")


@pytest.mark.usefixtures("on_the_processor")
def test_the_fastest_way_that_fits(architecture: Architecture) -> None:
    def needs(saving: str) -> float:
        return predicted_mib(architecture, TRAINING, LORA, saving)  # type: ignore[arg-type]

    assert needs("none") > needs("give_back") > needs("checkpointing") > needs("low_bit_states")
    for limit, way in ((None, "none"), (needs("none"), "none"), (needs("none") * 0.99, "give_back"),
                       (needs("give_back") * 0.99, "checkpointing"), (needs("checkpointing"), "checkpointing"),
                       (needs("checkpointing") * 0.999, "low_bit_states")):  # fmt: skip
        assert choose_saving(architecture, TRAINING, LORA, limit) == way
    with pytest.raises(
        TrainingError, match=r"adapt.max_memory_mib is \d+: lora on 2 x 32 tokens takes \d+ MiB"
    ):
        choose_saving(architecture, TRAINING, LORA, needs("low_bit_states") * 0.99)


def test_without_glibc_there_is_nothing_to_give_back(
    architecture: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_saving, "_glibc", lambda: None)
    plain = predicted_mib(architecture, TRAINING, LORA, "none")
    assert plain == predicted_mib(architecture, TRAINING, LORA, "give_back")
    assert choose_saving(architecture, TRAINING, LORA, plain * 0.99) == "checkpointing"
    with giving_back("give_back"):
        pass


def test_on_a_gpu_there_is_nothing_to_give_back(
    architecture: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_saving, "training_device", lambda: "cuda")
    assert predicted_mib(architecture, TRAINING, LORA, "none") == predicted_mib(
        architecture, TRAINING, LORA, "give_back"
    )


@pytest.mark.usefixtures("on_the_processor")
def test_every_way_trains_the_same_adapter(tmp_path: Path) -> None:
    tiny = tiny_llama(tmp_path / "m", layers=2)
    shape = read_architecture(tiny)
    losses = {}
    for saving in ("none", "give_back", "checkpointing", "low_bit_states"):
        out = tmp_path / saving
        out.mkdir()
        limit = predicted_mib(shape, TRAINING, LORA, saving)
        log = train_adapter(tiny, TEXTS, LORA, TRAINING, out, tmp_path / f"s-{saving}", max_mib=limit)
        assert log.saving == saving
        losses[saving] = log.losses
    assert losses["none"] == losses["give_back"]
    assert losses["checkpointing"] == pytest.approx(losses["none"], rel=1e-6)
    assert losses["low_bit_states"] == pytest.approx(losses["none"], rel=1e-2)


FREED = """
import sys
import psutil, torch
from tasks.training.memory_saving import giving_back

def held_mib():
    kept = []
    before = psutil.Process().memory_info().rss
    for _ in range(100):
        kept.append(torch.ones(2**19))  # 2 MiB
        torch.ones(2**19 + 2**17).sum()  # freed between them
    return (psutil.Process().memory_info().rss - before) / 2**20

with giving_back(sys.argv[1]):
    print(held_mib())
"""


@pytest.mark.skipif(memory_saving._glibc() is None, reason="not glibc")
def test_what_is_freed_is_gone() -> None:
    command = [sys.executable, "-c", FREED, "give_back"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(200, abs=20)


@pytest.mark.model
@pytest.mark.parametrize(
    ("method", "autocast"),
    [("lora", "none"), ("lora", "bf16"), ("qlora", "bf16"), ("dora", "none"), ("recovery", "none"), ("recovery", "bf16")],
)  # fmt: skip
def test_the_closed_form_is_within_15_percent_on_the_demo_model(
    method: str, autocast: str, demo_checkpoint: object, tmp_path: Path
) -> None:
    """In a process of its own, as the growth of one that has trained before says nothing."""
    code = (
        "import sys; from pathlib import Path; from tests.training.test_memory_saving import error_on; "
        "print(error_on(*sys.argv[1:]))"
    )
    folder = str(demo_checkpoint.folder)  # type: ignore[attr-defined]
    done = subprocess.run(
        [sys.executable, "-c", code, folder, method, autocast, str(tmp_path)], capture_output=True, text=True, check=False,
        cwd=ROOT, env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'fixtures'}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    error = float(done.stdout.splitlines()[-1])
    print(f"\n{method} {autocast}: {error:+.1%}")
    assert abs(error) < 0.15


def error_on(folder: str, method: str, autocast: str, scratch: str) -> float:
    """Relative error of the prediction with freed memory given back."""
    from tasks.store.artifact import Artifact, Manifest

    torch.set_num_threads(2)
    checkpoint = Artifact(
        digest="0" * 64, folder=Path(folder), manifest=Manifest(kind="checkpoint", files=())
    )
    shape = read_architecture(checkpoint)
    training = TrainingSettings.model_validate(
        {"steps": 2, "batch_sequences": 4, "sequence_tokens": 256, "autocast": autocast}
    )
    out, grids = Path(scratch) / "out", Path(scratch) / "grids"
    out.mkdir()
    texts = ["The keys to the cabinet are on the table, and nobody has asked for them. " * 40] * 40
    if method == "recovery":
        grids.mkdir()
        save_grids(any_grids(shape), grids)
        limit = predicted_mib(shape, training, trained_scales(shape, 64), "give_back")
        log = recover(checkpoint, grids, texts, training, out, Path(scratch) / "s", max_mib=limit)
    else:
        lora = LoraSettings.model_validate({"method": method})
        limit = predicted_mib(shape, training, lora, "give_back")
        log = train_adapter(checkpoint, texts, lora, training, out, Path(scratch) / "s", max_mib=limit)
    return limit / log.peak_mib - 1


def any_grids(shape: Architecture) -> dict[str, Grid]:
    """Random integers of 4 bits in groups of 64 for every linear layer: as large as any."""
    rng = np.random.default_rng(0)
    matrices = {matrix.name: matrix for matrix in linear_matrices(shape)}

    def grid(matrix: Matrix) -> Grid:
        groups = (matrix.outputs, matrix.inputs // 64)
        codes = rng.integers(0, 16, (matrix.outputs, matrix.inputs), np.uint8)
        return Grid(
            bits=4, codes=codes, scales=np.full(groups, 0.01, np.float16), zeros=np.full(groups, 8, np.uint8)
        )

    return {name: grid(matrices[name.rsplit(".", 1)[-1]]) for name in layer_names(shape)}
