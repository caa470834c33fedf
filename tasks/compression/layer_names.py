"""Linear layers are named as in the checkpoint, "model.layers.0.mlp.up_proj", whatever an engine's graph calls them."""

import difflib
from collections.abc import Collection, Iterable

from tasks.compression.error import CompressionError


def check_layers_exist(setting: str, wanted: Iterable[str], known: Collection[str]) -> None:
    """Raise CompressionError for the first wanted name that is no linear layer, with the nearest one that is."""
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0) or ["none"]
            raise CompressionError(
                f"{setting} names {name}; the model has no such linear layer; use one of its {len(known)} layers, the nearest "
                f"is {near[0]}"
            )
