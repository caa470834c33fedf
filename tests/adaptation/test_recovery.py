import copy
from pathlib import Path

import pytest
import torch
from tiny_llama import TEXTS, tiny_llama

from configs.training import TrainingSettings
from configs.weights import WeightSettings
from tasks.adaptation.recovery import RoundedLinear, recover, restore_linear_layers, round_linear_layers
from tasks.adaptation.rounding import rounded
from tasks.store.artifact import Artifact
from tasks.training.checkpoint import load_model, load_tokenizer
from tasks.training.error import TrainingError
from tasks.training.losses import divergence

INT4 = WeightSettings(bits=4, symmetric=True, group_size=32)
TRAINING = TrainingSettings(
    steps=20, batch_sequences=4, sequence_tokens=32, learning_rate=1e-3, autocast="none"
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny_llama(tmp_path_factory.mktemp("tiny"))


def rounded_copy(model: torch.nn.Module) -> torch.nn.Module:
    """Every block's linear weights rounded for good, as compression would do it."""
    model = copy.deepcopy(model)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.weight.data = rounded(module.weight, 4, True, 32)
    return model


def kl(model: torch.nn.Module, teacher: torch.nn.Module, folder: Path) -> float:
    ids = torch.tensor([load_tokenizer(folder)(" ".join(TEXTS[5:9]))["input_ids"]])
    with torch.no_grad():
        student, reference = model(input_ids=ids).logits[0], teacher(input_ids=ids).logits[0]
    return divergence(student, reference).item() / ids.numel()


def test_recovery_lowers_the_divergence_of_the_rounded_weights(tiny: Artifact, tmp_path: Path) -> None:
    log = recover(tiny, TEXTS, INT4, TRAINING, tmp_path / "out", tmp_path / "scratch")

    teacher = load_model(tiny.folder, torch.float32)
    before = kl(rounded_copy(teacher), teacher, tiny.folder)
    recovered = load_model(tmp_path / "out", torch.float32)
    after = kl(rounded_copy(recovered), teacher, tiny.folder)
    assert after < 0.8 * before
    assert log.losses[-1] < log.losses[0]


def test_training_starts_from_the_rounded_weights_themselves(tiny: Artifact) -> None:
    model = load_model(tiny.folder, torch.float32)
    expected, ids = rounded_copy(model), torch.arange(20)[None]
    layers = round_linear_layers(model, INT4)

    assert len(layers) == 3 * 7
    with torch.no_grad():
        torch.testing.assert_close(
            model(input_ids=ids).logits, expected(input_ids=ids).logits, atol=1e-5, rtol=0
        )
    restore_linear_layers(model)
    original = load_model(tiny.folder, torch.float32)
    torch.testing.assert_close(model.state_dict(), original.state_dict())


def test_named_layers_stay_at_eight_bits(tiny: Artifact) -> None:
    model = load_model(tiny.folder, torch.float32)
    round_linear_layers(model, INT4, eight_bit=["model.layers.1.mlp.up_proj"])
    kinds = {n: (m.bits, m.symmetric) for n, m in model.named_modules() if isinstance(m, RoundedLinear)}
    assert kinds.pop("model.layers.1.mlp.up_proj") == (8, True)
    assert set(kinds.values()) == {(4, True)}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (WeightSettings(), "weights.bits is 32"),
        (
            WeightSettings(bits=4, group_size=48),
            "group_size is 48, model.layers.0.self_attn.q_proj has 64 inputs",
        ),
        (WeightSettings(bits=4, group_size=32, int8_ratio=0.2), "int8_ratio is 0.2: name the layers"),
    ],
)
def test_formats_that_cannot_be_recovered(
    weights: WeightSettings, message: str, tiny: Artifact, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=message):
        recover(tiny, TEXTS, weights, TRAINING, tmp_path, tmp_path / "scratch")
