"""How many parameters an adapter trains, from the model's shapes alone."""

from collections.abc import Mapping
from typing import Any

from configs.schema import LoraSettings


def linear_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of each linear layer of one block of Llama and kin (gated MLP, grouped queries).

    Args:
        config: the model's `config.json`.
    """
    hidden, heads, mlp = config["hidden_size"], config["num_attention_heads"], config["intermediate_size"]
    head = config.get("head_dim") or hidden // heads
    queries, keys = heads * head, (config.get("num_key_value_heads") or heads) * head
    return {
        "q_proj": (hidden, queries),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (queries, hidden),
        "gate_proj": (hidden, mlp),
        "up_proj": (hidden, mlp),
        "down_proj": (mlp, hidden),
    }


def adapter_parameters(config: Mapping[str, Any], lora: LoraSettings) -> int:
    """Trainable parameters: rank * (inputs + outputs) for each target, and one magnitude an output for DoRA.

    LoRA: Hu et al. 2021, arXiv:2106.09685. DoRA: Liu et al. 2024, arXiv:2402.09353; the magnitude vector
        has one entry an
    output channel of the weight as torch stores it.

    Args:
        config: the model's `config.json`.
        lora: rank, method and targets.

    Raises:
        KeyError: a target module is not a linear layer of these blocks.
    """
    shapes = linear_shapes(config)
    per_block = sum(
        lora.rank * (inputs + outputs) + (outputs if lora.method == "dora" else 0)
        for inputs, outputs in (shapes[target] for target in lora.target_modules)
    )
    return int(per_block * config["num_hidden_layers"])
