"""Recovery trains the scales of a grid: the integers stay, the divergence falls, and what was trained is what is served."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from served_logits import IDS, logits_of, sealed
from tiny_llama import TEXTS, tiny_llama

from configs.engine import EngineSettings
from configs.training import TrainingSettings
from configs.weights import WeightSettings
from tasks.adaptation import recovery
from tasks.adaptation.recovered_challenger import grid_format
from tasks.adaptation.recovery import GridLinear, recover, scales_of, use_grids
from tasks.compression.build import build_artifact, rounded_grids
from tasks.compression.error import CompressionError
from tasks.compression.grid import Grid, load_grids, save_grids
from tasks.compression.openvino_matrices import weight_formats
from tasks.models.checkpoint import read_architecture
from tasks.profiling.training_memory import trained_scales
from tasks.release.candidate import Candidate
from tasks.store.artifact import Artifact
from tasks.store.store import Store
from tasks.training.checkpoint import load_model, load_tokenizer
from tasks.training.error import TrainingError
from tasks.training.losses import divergence
from tasks.training.memory_saving import predicted_mib

LAYER = "model.layers.1.mlp.up_proj"
SYMMETRIC = WeightSettings(bits=4, group_size=32, calibration="gptq", int8_layers=(LAYER,), embedding_bits=32)
ASYMMETRIC = SYMMETRIC.model_copy(update={"symmetric": False})
TRAINING = TrainingSettings(
    steps=40, batch_sequences=4, sequence_tokens=32, learning_rate=3e-3, autocast="none", checkpoint_steps=10
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def checkpoint(home: Store, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return sealed(home, tiny_llama(tmp_path_factory.mktemp("tiny") / "model"))


def folder_of(home: Store, checkpoint: Artifact, weights: WeightSettings) -> Path:
    return rounded_grids(home, checkpoint, "openvino", weights, TEXTS).folder


def grids_of(home: Store, checkpoint: Artifact, weights: WeightSettings) -> dict[str, Grid]:
    return load_grids(folder_of(home, checkpoint, weights))


def saved(grids: Mapping[str, Grid], folder: Path) -> Path:
    folder.mkdir()
    save_grids(grids, folder)
    return folder


def disturbed(grids: Mapping[str, Grid]) -> dict[str, Grid]:
    """Scales up to a tenth off: in a model of random weights GPTQ leaves little to learn."""
    rng = np.random.default_rng(0)
    return {
        name: replace(grid, scales=grid.scales * rng.uniform(0.9, 1.1, grid.scales.shape).astype(np.float16))
        for name, grid in grids.items()
    }


def kl(checkpoint: Artifact, grids: Mapping[str, Grid]) -> float:
    """On text that nothing was trained on, in the embedding of the source."""
    ids = torch.tensor(
        [load_tokenizer(checkpoint.folder)("the other keys are not on a cabinet")["input_ids"]]
    )
    teacher, student = (load_model(checkpoint.folder, torch.float32) for _ in range(2))
    use_grids(student, grids)
    with torch.no_grad():
        return (
            divergence(student(input_ids=ids).logits[0], teacher(input_ids=ids).logits[0]).item()
            / ids.numel()
        )


@pytest.mark.parametrize("weights", [SYMMETRIC, ASYMMETRIC], ids=["symmetric", "asymmetric"])
def test_scales_learn_and_integers_stay(
    weights: WeightSettings, home: Store, checkpoint: Artifact, tmp_path: Path
) -> None:
    grids = disturbed(grids_of(home, checkpoint, weights))
    start = saved(grids, tmp_path / "start")
    log = recover(checkpoint, start, TEXTS, TRAINING, tmp_path, tmp_path / "scratch")

    found = load_grids(tmp_path)
    assert log.trainable_parameters == sum(grid.scales.size for grid in grids.values())
    assert {grid.bits for grid in found.values()} == {4, 8}
    for name, grid in grids.items():
        np.testing.assert_array_equal(found[name].codes, grid.codes)
        assert (found[name].zeros is None) == weights.symmetric
        assert (found[name].scales != grid.scales).any()
    assert kl(checkpoint, found) < 0.9 * kl(checkpoint, grids)


def test_what_was_trained_is_what_is_served(home: Store, checkpoint: Artifact) -> None:
    """The trained grids in OpenVINO's graph against the same in torch; what is left is far below what rounding does."""
    grids = grids_of(home, checkpoint, ASYMMETRIC)
    start = folder_of(home, checkpoint, ASYMMETRIC)
    trained = home.seal(
        lambda out: recover(checkpoint, start, TEXTS, TRAINING, out, out.parent / "scratch"), kind="grid"
    )
    served = logits_of(
        build_artifact(home, checkpoint, "openvino", ASYMMETRIC, TEXTS, grids=trained), "openvino"
    )

    def in_torch(of: Mapping[str, Grid]) -> np.ndarray:
        model = load_model(checkpoint.folder, torch.float32)
        use_grids(model, of)
        with torch.no_grad():
            return model(input_ids=torch.tensor([IDS])).logits[0, :-1].numpy()

    moved = np.abs(in_torch(load_grids(trained.folder)) - in_torch(grids)).mean()
    assert moved > 0
    assert np.abs(served - in_torch(load_grids(trained.folder))).mean() < 0.05 * moved
    untrained = logits_of(build_artifact(home, checkpoint, "openvino", ASYMMETRIC, TEXTS), "openvino")
    assert (
        np.abs(served - untrained).mean() > 0.5 * moved
    )  # the grids that were given, not those of the format


def test_the_teacher_is_the_source(checkpoint: Artifact, home: Store) -> None:
    model, source = (load_model(checkpoint.folder, torch.float32) for _ in range(2))
    layers = use_grids(model, grids_of(home, checkpoint, SYMMETRIC))
    assert len(layers) == 3 * 7
    assert {name for name, each in model.named_parameters() if each.requires_grad} == {
        f"{name}.change_NG" for name in layers
    }
    ids = torch.tensor([IDS])
    with torch.no_grad():
        rounded = model(input_ids=ids).logits
        for layer in layers.values():
            layer.is_teacher = True
        torch.testing.assert_close(model(input_ids=ids).logits, source(input_ids=ids).logits)
        assert not torch.equal(rounded, source(input_ids=ids).logits)


def test_the_slope_of_a_scale_is_that_of_plain_arithmetic(checkpoint: Artifact, home: Store) -> None:
    grid = grids_of(home, checkpoint, ASYMMETRIC)["model.layers.0.mlp.down_proj"]
    model = load_model(checkpoint.folder, torch.float32)
    layer = use_grids(model, {"model.layers.0.mlp.down_proj": grid})["model.layers.0.mlp.down_proj"]
    x, upstream = torch.randn(5, grid.codes.shape[1]), torch.randn(5, grid.codes.shape[0])
    (layer(x) * upstream).sum().backward()

    scales = torch.from_numpy(grid.scales.astype(np.float32)).requires_grad_()
    codes = torch.from_numpy(grid.codes.astype(np.float32)).reshape(*grid.scales.shape, -1)
    zeros = torch.from_numpy(grid.zeros.astype(np.float32))[..., None]
    weight = ((codes - zeros) * scales[..., None]).flatten(1)
    ((x @ weight.T) * upstream).sum().backward()
    torch.testing.assert_close(layer.change_NG.grad, scales.grad * scales.detach())


def test_zeros_between_the_codes_are_served_as_they_are() -> None:
    """A source's own grid has such."""
    rng = np.random.default_rng(0)
    grid = Grid(
        bits=4,
        codes=rng.integers(0, 16, (6, 64), np.uint8),
        scales=rng.uniform(0.01, 0.02, (6, 2)).astype(np.float16),
        zeros=rng.uniform(6, 9, (6, 2)).astype(np.float16),
    )
    layer = GridLinear(torch.nn.Linear(64, 6, bias=False), grid)
    x = torch.randn(3, 64)
    torch.testing.assert_close(layer(x), x @ torch.from_numpy(grid.weights()).T)
    np.testing.assert_array_equal(layer.trained().weights(), grid.weights())


def test_the_layers_that_nncf_kept_at_eight_bits_keep_them(home: Store, checkpoint: Artifact) -> None:
    weights = WeightSettings(bits=4, group_size=32, int8_ratio=0.3, embedding_bits=32)
    artifact = build_artifact(home, checkpoint, "openvino", weights, TEXTS)
    engine = EngineSettings(engine="openvino")
    challenger = Candidate(
        name="int4", artifact=artifact.digest, engine=engine, weights=weights.label, format=weights
    )
    stored = grid_format(home, challenger)
    assert stored.calibration == "gptq"
    assert stored.int8_layers
    grids = load_grids(rounded_grids(home, checkpoint, "openvino", stored, TEXTS).folder)
    assert {name for name, grid in grids.items() if grid.bits == 8} == set(stored.int8_layers)
    assert {name for name, kind in weight_formats(artifact.folder).layers.items() if kind == "i8"} == set(
        stored.int8_layers
    )
    own = challenger.model_copy(update={"format": SYMMETRIC})
    assert grid_format(home, own) == SYMMETRIC


def test_grids_for_a_format_without_any_are_refused(home: Store, checkpoint: Artifact) -> None:
    grids = rounded_grids(home, checkpoint, "openvino", SYMMETRIC, TEXTS)
    plain = WeightSettings(bits=4, group_size=32)
    with pytest.raises(CompressionError, match="int4 sym g32 is not built from grids"):
        build_artifact(home, checkpoint, "openvino", plain, TEXTS, grids=grids)


def test_killed_and_started_again_it_ends_at_the_same_loss(
    checkpoint: Artifact, home: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = folder_of(home, checkpoint, SYMMETRIC)
    for name in ("undisturbed", "killed"):
        (tmp_path / name).mkdir()
    undisturbed = recover(checkpoint, start, TEXTS, TRAINING, tmp_path / "undisturbed", tmp_path / "a")
    steps, taken = iter(range(25)), []

    def counts(*what: object, **named: object) -> object:
        taken.append(1)
        return whole(*what, **named)

    def dies(*what: object, **named: object) -> object:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return whole(*what, **named)

    whole = recovery.distillation
    monkeypatch.setattr(recovery, "distillation", dies)
    with pytest.raises(KeyboardInterrupt):
        recover(checkpoint, start, TEXTS, TRAINING, tmp_path / "killed", tmp_path / "b")
    monkeypatch.setattr(recovery, "distillation", counts)
    resumed = recover(checkpoint, start, TEXTS, TRAINING, tmp_path / "killed", tmp_path / "b")
    assert len(taken) == 20  # killed in the 26th step, it goes on from the 20th
    assert resumed.losses == pytest.approx(undisturbed.losses, rel=1e-5)
    for name, grid in load_grids(tmp_path / "killed").items():
        np.testing.assert_allclose(grid.scales, load_grids(tmp_path / "undisturbed")[name].scales, rtol=2e-3)


def test_a_grid_of_another_model_is_refused(checkpoint: Artifact, home: Store, tmp_path: Path) -> None:
    grids = {"model.layers.9.mlp.up_proj": grids_of(home, checkpoint, SYMMETRIC)[LAYER]}
    with pytest.raises(CompressionError, match=r"a grid names model.layers.9.mlp.up_proj"):
        recover(checkpoint, saved(grids, tmp_path / "start"), TEXTS, TRAINING, tmp_path, tmp_path / "scratch")


def test_a_folder_without_grids_is_refused(checkpoint: Artifact, tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match=r"holds no grids.safetensors"):
        recover(checkpoint, tmp_path, TEXTS, TRAINING, tmp_path, tmp_path / "scratch")


def test_training_that_does_harm_ends_at_the_scales_it_began_with(
    checkpoint: Artifact, home: Store, tmp_path: Path
) -> None:
    start = folder_of(home, checkpoint, SYMMETRIC)
    training = TRAINING.model_copy(update={"learning_rate": 3.0, "checkpoint_steps": 2, "patience": 2})
    log = recover(checkpoint, start, TEXTS[:12], training, tmp_path, tmp_path / "scratch", TEXTS[12:])
    assert (log.steps, log.kept_step) == (4, 0)
    assert log.stopped == "the held-out loss has not fallen for 2 looks"
    before, after = load_grids(start), load_grids(tmp_path)
    for name, grid in before.items():
        np.testing.assert_array_equal(after[name].scales, grid.scales)


def test_training_that_breaks_before_it_gained_anything_is_an_error(
    checkpoint: Artifact, home: Store, tmp_path: Path
) -> None:
    start = folder_of(home, checkpoint, SYMMETRIC)
    training = TRAINING.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(TrainingError, match=r"is nan; lower learning_rate"):
        recover(checkpoint, start, TEXTS[:12], training, tmp_path, tmp_path / "scratch", TEXTS[12:])
    assert list(tmp_path.glob("*.safetensors")) == []


def test_the_least_divergence_on_held_out_text_is_kept(
    checkpoint: Artifact, home: Store, tmp_path: Path
) -> None:
    start = saved(disturbed(grids_of(home, checkpoint, ASYMMETRIC)), tmp_path / "start")
    log = recover(checkpoint, start, TEXTS[:12], TRAINING, tmp_path, tmp_path / "scratch", TEXTS[12:])
    assert list(log.held_out_losses) == [0, 10, 20, 30, 40]
    assert log.kept_step is not None
    assert log.held_out_losses[log.kept_step] == min(log.held_out_losses.values())
    assert log.held_out_losses[log.kept_step] < 0.9 * log.held_out_losses[0]


def test_every_way_to_save_memory_trains_the_same_scales(
    checkpoint: Artifact, home: Store, tmp_path: Path
) -> None:
    start = folder_of(home, checkpoint, SYMMETRIC)
    shape, training = read_architecture(checkpoint), TRAINING.model_copy(update={"steps": 4})
    losses = {}
    for saving in ("none", "checkpointing", "low_bit_states"):
        out = tmp_path / saving
        out.mkdir()
        limit = predicted_mib(shape, training, scales_of(start), saving)  # type: ignore[arg-type]
        log = recover(checkpoint, start, TEXTS, training, out, tmp_path / f"s-{saving}", max_mib=limit)
        assert log.saving == saving
        losses[saving] = log.losses
    assert losses["checkpointing"] == pytest.approx(losses["none"], rel=1e-5)
    assert losses["low_bit_states"] == pytest.approx(losses["none"], rel=2e-2)


def test_the_closed_form_counts_the_scales(checkpoint: Artifact, home: Store) -> None:
    for weights in (SYMMETRIC, ASYMMETRIC, SYMMETRIC.model_copy(update={"int8_layers": ()})):
        # OpenVINO's 8-bit layers have a scale a channel.
        counted = trained_scales(read_architecture(checkpoint), weights.group_size, weights.int8_layers)
        assert counted == scales_of(folder_of(home, checkpoint, weights))
