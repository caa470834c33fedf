"""Recovery on a tiny model: it begins at what is served, what it trains is what is served, and the divergence falls."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_llama import TEXTS, tiny_llama

from configs.engine import EngineSettings, SchedulerSettings
from configs.schema import TrainingSettings
from configs.weights import WeightSettings
from tasks.adaptation.grid_layer import GridLinear, ScaledNorm
from tasks.adaptation.recovery import make_trainable, recover, restore_layers
from tasks.compression.build import build_artifact
from tasks.compression.error import CompressionError
from tasks.compression.grid import Grid, load_grids
from tasks.compression.served_grids import served_grids
from tasks.engines.openvino_engine import OpenVinoEngine
from tasks.engines.protocol import ScoreRequest
from tasks.store.artifact import Artifact
from tasks.store.store import Store
from tasks.training.checkpoint import load_model, load_tokenizer
from tasks.training.error import TrainingError
from tasks.training.losses import divergence

IDS = tuple(range(2, 40))
EIGHT = ("model.layers.1.mlp.up_proj", "model.layers.2.self_attn.q_proj")
GPTQ = WeightSettings(
    bits=4, symmetric=False, group_size=32, calibration="gptq", int8_layers=EIGHT, embedding_bits=32
)
FORMATS = {
    "gptq": GPTQ,
    "nearest": WeightSettings(bits=4, group_size=32, int8_ratio=0.3, embedding_bits=32),
    "nearest asym": WeightSettings(bits=4, symmetric=False, group_size=32, int8_ratio=0.3, embedding_bits=32),
    "scales": WeightSettings(
        bits=4, group_size=32, calibration="scale_estimation", calibration_samples=16, embedding_bits=32
    ),
}
TRAINING = TrainingSettings(
    steps=100,
    batch_sequences=4,
    sequence_tokens=32,
    learning_rate=2e-3,
    autocast="none",
    checkpoint_steps=20,
    patience=None,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def tiny(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    model = tiny_llama(tmp_path_factory.mktemp("tiny"))

    def copy(out: Path) -> None:
        for file in model.folder.iterdir():
            (out / file.name).write_bytes(file.read_bytes())

    return store.seal(copy, kind="checkpoint")


def served_logits(artifact: Artifact) -> np.ndarray:
    settings = EngineSettings(engine="openvino", scheduler=SchedulerSettings(cache_mib=16))
    with OpenVinoEngine.open(artifact, settings) as engine:
        logits = next(engine.score([ScoreRequest(IDS[:1], IDS[1:])], with_logits=True)).logits
    assert logits is not None
    return logits


def torch_logits(model: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        return model(input_ids=torch.tensor([IDS])).logits[0, :-1].float().numpy()


def seal_recovered(store: Store, tiny: Artifact, weights: WeightSettings, write) -> Artifact:
    recipe = {"engine": "openvino", "weights": weights.model_dump(mode="json")}
    return store.seal(write, kind="checkpoint", parent=tiny.digest, recipe=recipe)


@pytest.mark.parametrize("name", FORMATS)
def test_training_begins_at_the_weights_that_are_served(name: str, store: Store, tiny: Artifact) -> None:
    artifact = build_artifact(store, tiny, "openvino", FORMATS[name], TEXTS)
    model = load_model(tiny.folder, torch.float32)
    plain = torch_logits(model)
    make_trainable(model, served_grids(store, artifact, FORMATS[name]))
    kinds = [module.grid().bits for module in model.modules() if isinstance(module, GridLinear)]
    assert len(kinds) == 3 * 7
    assert (8 in kinds) == (name != "scales")
    trained, served = torch_logits(model), served_logits(artifact)
    # What is left is the float16 in which the graph multiplies: a hundredth of what the rounding itself does.
    assert np.abs(served - trained).mean() < 0.01 * np.abs(served - plain).mean()


@pytest.mark.parametrize("name", ["gptq", "nearest asym"])
def test_what_was_trained_is_what_is_served_then(
    name: str, store: Store, tiny: Artifact, tmp_path: Path
) -> None:
    weights = FORMATS[name]
    start = build_artifact(store, tiny, "openvino", weights, TEXTS)

    def grids() -> dict[str, Grid]:
        return served_grids(store, start, weights)

    (tmp_path / "out").mkdir()
    recover(tiny, TEXTS, grids, TRAINING, tmp_path / "out", tmp_path / "scratch")

    def copy(out: Path) -> None:
        for file in (tmp_path / "out").iterdir():
            (out / file.name).write_bytes(file.read_bytes())

    checkpoint = seal_recovered(store, tiny, weights, copy)
    served = build_artifact(store, checkpoint, "openvino", weights, TEXTS)
    assert served.digest != start.digest
    trained, source = load_model(checkpoint.folder, torch.float32), load_model(tiny.folder, torch.float32)
    # Checkpoint and artifact are one model; the integers in the artifact are those of the grids beside the checkpoint.
    apart = np.abs(served_logits(served) - torch_logits(trained)).mean()
    assert apart < 0.01 * np.abs(served_logits(start) - torch_logits(source)).mean()
    stored = served_grids(store, served, weights)
    for layer, grid in load_grids(checkpoint.folder).items():
        np.testing.assert_array_equal(stored[layer].codes, grid.codes)
        np.testing.assert_array_equal(stored[layer].scales, grid.scales)
    # In another format the checkpoint is a model like any other: its own grids are not for that one.
    other = weights.model_copy(update={"group_size": 16, "int8_layers": (), "int8_ratio": 0.0})
    assert (
        build_artifact(store, checkpoint, "openvino", other, TEXTS).manifest.data.get("grids")
        != checkpoint.digest
    )


def test_recovery_lowers_the_divergence_of_weights_rounded_to_nearest(
    store: Store, tiny: Artifact, tmp_path: Path
) -> None:
    before, after = recovered(store, tiny, FORMATS["nearest"], tmp_path)
    assert after < 0.8 * before


def test_recovery_leaves_calibrated_weights_no_worse(store: Store, tiny: Artifact, tmp_path: Path) -> None:
    """GPTQ on the very text leaves next to nothing to win; what training spoils is not kept."""
    before, after = recovered(store, tiny, GPTQ, tmp_path, held_out=TEXTS[5:9])
    assert after <= 1.02 * before


def recovered(
    store: Store, tiny: Artifact, weights: WeightSettings, folder: Path, held_out: Sequence[str] = ()
) -> tuple[float, float]:
    """Divergence of the served weights from the source before and after recovery, nats a token."""
    grids = served_grids(store, build_artifact(store, tiny, "openvino", weights, TEXTS), weights)
    (folder / "out").mkdir()
    recover(tiny, TEXTS, lambda: grids, TRAINING, folder / "out", folder / "scratch", held_out)

    source = load_model(tiny.folder, torch.float32)
    before = load_model(tiny.folder, torch.float32)
    make_trainable(before, grids)
    after = load_model(folder / "out", torch.float32)
    ids = torch.tensor([load_tokenizer(tiny.folder)(" ".join(TEXTS[5:9]))["input_ids"]])

    def kl(model: torch.nn.Module) -> float:
        with torch.no_grad():
            student, teacher = model(input_ids=ids).logits[0], source(input_ids=ids).logits[0]
        return divergence(student, teacher).item() / ids.numel()

    return kl(before), kl(after)


def test_norms_of_another_kind_and_the_output_head_stay(tiny: Artifact, store: Store) -> None:
    class OneMore(torch.nn.Module):
        """As Gemma has it: times 1 + weight."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * (1 + self.weight)

    OneMore.__name__ = "GemmaRMSNorm"
    model = load_model(tiny.folder, torch.float32)
    model.set_submodule("model.norm", OneMore())
    head = model.get_output_embeddings()
    make_trainable(model, served_grids(store, build_artifact(store, tiny, "openvino", GPTQ, TEXTS), GPTQ))
    assert isinstance(model.model.norm, OneMore)
    assert sum(isinstance(module, ScaledNorm) for module in model.modules()) == 2 * 3
    assert model.get_output_embeddings() is head
    assert not head.weight.requires_grad
    assert len(restore_layers(model)) == 3 * 7


def test_grids_of_another_model_are_refused(tiny: Artifact, store: Store, tmp_path: Path) -> None:
    grids = served_grids(store, build_artifact(store, tiny, "openvino", GPTQ, TEXTS), GPTQ)
    shallower = tiny_llama(tmp_path, layers=2)
    with pytest.raises(TrainingError, match=r"has a layer model.layers.2\..*, the source has none such"):
        make_trainable(load_model(shallower.folder, torch.float32), grids)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (WeightSettings(embedding_bits=32), "stored as f32; only integers with scales make a grid"),
        (WeightSettings(bits=4, number="nf4", group_size=32, embedding_bits=32), "stored as nf4"),
        (WeightSettings(bits=4, group_size=32, embedding_bits=4), "use embedding_bits: 8"),
        (
            WeightSettings(bits=8, activations="int8_static", calibration_samples=16),
            "use activations: float and no",
        ),
    ],
)
def test_formats_without_grids_are_refused(
    weights: WeightSettings, message: str, tiny: Artifact, store: Store
) -> None:
    artifact = build_artifact(store, tiny, "openvino", weights, TEXTS)
    with pytest.raises(CompressionError, match=message):
        served_grids(store, artifact, weights)
