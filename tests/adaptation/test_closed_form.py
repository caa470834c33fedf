import json
from pathlib import Path

import peft
import pytest
import torch
from tiny_llama import tiny_llama

from configs.schema import LoraSettings
from tasks.adaptation.closed_form import adapter_parameters
from tasks.training.checkpoint import load_model

# SmolLM2-135M: 30 layers of 576 wide, 9 heads and 3 KV heads of 64, MLP 1536.
SMOLLM2 = {
    "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
    "intermediate_size": 1536, "num_hidden_layers": 30,
}  # fmt: skip


def test_rank_16_on_all_layers_of_the_demo_model() -> None:
    # a layer: q, o 2 * 16 * (576 + 576), k, v 2 * 16 * (576 + 192), MLP 3 * 16 * (576 + 1536)
    by_hand = 30 * (2 * 16 * 1152 + 2 * 16 * 768 + 3 * 16 * 2112)
    assert adapter_parameters(SMOLLM2, LoraSettings(method="lora")) == by_hand == 4_884_480
    assert adapter_parameters(SMOLLM2, LoraSettings(method="qlora")) == by_hand
    magnitudes = 30 * (576 + 192 + 192 + 576 + 1536 + 1536 + 576)
    assert adapter_parameters(SMOLLM2, LoraSettings(method="dora")) == by_hand + magnitudes


def test_the_attention_only_estimate_of_the_notes() -> None:
    # 4096 wide, 32 layers, rank 16, four square projections: 2 * 4096 * 16 each
    square = {
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
    }
    targets = ("q_proj", "k_proj", "v_proj", "o_proj")
    lora = LoraSettings(method="lora", rank=16, target_modules=targets)
    assert adapter_parameters(square, lora) == 2 * 4096 * 16 * 4 * 32 == 16_777_216


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("targets", [("q_proj", "down_proj"), LoraSettings(method="lora").target_modules])
def test_the_closed_form_is_the_real_count(method: str, targets: tuple[str, ...], tmp_path: Path) -> None:
    lora = LoraSettings.model_validate({"method": method, "rank": 3, "target_modules": targets})
    folder = tiny_llama(tmp_path).folder
    config = peft.LoraConfig(r=3, target_modules=list(targets), use_dora=method == "dora")
    model = peft.get_peft_model(load_model(folder, torch.float32), config)

    real = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert adapter_parameters(json.loads((folder / "config.json").read_text()), lora) == real
