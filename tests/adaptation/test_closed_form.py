"""The closed form of an adapter's size against the adapters that peft makes."""

from pathlib import Path

import pytest
from peft.tuners.lora import LoraLayer
from tiny_llama import tiny_llama

from configs.training import LoraSettings, TrainingSettings
from tasks.adaptation.lora import with_adapter
from tasks.models.checkpoint import Architecture, read_architecture
from tasks.profiling.training_memory import lora_parameters
from tasks.training.error import TrainingError

SMOLLM2 = Architecture(
    model_type="llama", layers=30, hidden=576, intermediate=1536, heads=9, kv_heads=3, head_dim=64, vocabulary=49_152,
    tied_embeddings=True, parameters=134_515_008, context_tokens=8192, dtype="F32",
)  # fmt: skip
TRAINING = TrainingSettings(autocast="none")


def test_rank_16_on_all_layers_of_the_demo_model() -> None:
    # a layer: q, o 2 * 16 * (576 + 576), k, v 2 * 16 * (576 + 192), MLP 3 * 16 * (576 + 1536)
    by_hand = 30 * (2 * 16 * 1152 + 2 * 16 * 768 + 3 * 16 * 2112)
    assert lora_parameters(SMOLLM2, LoraSettings(method="lora")) == by_hand == 4_884_480
    assert lora_parameters(SMOLLM2, LoraSettings(method="qlora")) == by_hand
    magnitudes = 30 * (576 + 192 + 192 + 576 + 1536 + 1536 + 576)
    assert lora_parameters(SMOLLM2, LoraSettings(method="dora")) == by_hand + magnitudes


def test_a_pattern_counts_what_it_matches() -> None:
    first_three = LoraSettings(method="lora", target_modules=r"model\.layers\.[0-2]\.mlp\..*_proj")
    assert lora_parameters(SMOLLM2, first_three) == 3 * 3 * 16 * (576 + 1536)


@pytest.mark.parametrize("method", ["lora", "dora", "qlora"])
@pytest.mark.parametrize(
    "targets",
    [("q_proj", "down_proj"), LoraSettings(method="lora").target_modules, r".*layers\.[02]\.(mlp|self_attn)\.[ud].*"],
)  # fmt: skip
def test_the_closed_form_is_the_real_count(method: str, targets: object, tmp_path: Path) -> None:
    lora = LoraSettings.model_validate({"method": method, "rank": 3, "target_modules": targets})
    checkpoint = tiny_llama(tmp_path)
    model = with_adapter(checkpoint.folder, lora, TRAINING)

    real = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert lora_parameters(read_architecture(checkpoint), lora) == real > 0


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("c_attn",), r"target_modules names \['c_attn'\]; the linear layers of this model are \["),
        ("c_attn", "matches no linear layer; whole names are like 'model.layers.0.self_attn.q_proj'"),
        ("lm_head", "target_modules names lm_head"),
        (("q_proj", "lm_head"), "target_modules names lm_head"),
    ],
)
def test_targets_that_cannot_be_adapted(targets: object, message: str, tmp_path: Path) -> None:
    lora = LoraSettings.model_validate({"method": "lora", "target_modules": targets})
    with pytest.raises(TrainingError, match=message):
        with_adapter(tiny_llama(tmp_path, tied=False).folder, lora, TRAINING)


def test_a_rank_stabilized_adapter_is_scaled_by_the_root_of_its_rank(tmp_path: Path) -> None:
    lora = LoraSettings(method="lora", rank=16, alpha=32, rank_stabilized=True)
    model = with_adapter(tiny_llama(tmp_path).folder, lora, TRAINING)
    scales = {module.scaling["default"] for module in model.modules() if isinstance(module, LoraLayer)}
    assert scales == {lora.scale} == {8.0}
