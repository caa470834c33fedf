"""What the size of a model's KV cache depends on, from the config.json beside the weights of any engine."""

import json
from pathlib import Path
from typing import NamedTuple


class CacheShape(NamedTuple):
    """A token has layers x kv_heads x head_dim keys, and as many values."""

    layers: int
    kv_heads: int
    head_dim: int


def read_cache_shape(folder: Path) -> CacheShape:
    """The shape of the model in an artifact's folder."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    heads = int(config["num_attention_heads"])
    return CacheShape(
        layers=int(config["num_hidden_layers"]),
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
    )
