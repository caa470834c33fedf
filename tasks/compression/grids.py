"""From a checkpoint to the grids of all its linear layers: GPTQ over the decoder, block by block, at 4 and 8 bits.

A token's weight in a layer's Hessian is what the loss feels of it (`tasks.compression.fisher`), pulled towards the mean of all tokens,
since few tokens of large weight would be fitted too closely. That weight depends on the checkpoint and the text alone and is
shared by all formats. The error left in a layer, in the same unit, is its predicted share of the divergence: it
says which layers are worth 8 bits (`tasks.compression.mixed_precision`).
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from configs.weights import WeightSettings
from tasks.compression.block_inputs import walk_blocks
from tasks.compression.error import CompressionError
from tasks.compression.fisher import token_importance
from tasks.compression.gptq import round_layer
from tasks.compression.grid import Grid, save_grids
from tasks.compression.layer_names import check_layers_exist
from tasks.compression.mixed_precision import ERRORS_FILE
from tasks.store.artifact import Artifact

SEQUENCE_TOKENS = 256
_EVENED = 0.3  # share of the mean in a token's weight: docs/log.md
IMPORTANCE_FILE = "importance.safetensors"


def write_importance(checkpoint: Artifact, texts: Sequence[str], out: Path) -> None:
    """Write the tokens of the calibration text and their weight at every layer into `out`.

    Raises:
        CompressionError: the text is too short.
    """
    from safetensors.torch import save_file

    from tasks.training.checkpoint import load_model

    model = load_model(checkpoint.folder, torch.float32)
    tokens_BT = _tokens(checkpoint.folder, texts)
    importance = token_importance(model, tokens_BT, seed=0)
    save_file({"tokens": tokens_BT} | importance, out / IMPORTANCE_FILE)


def write_grids_of(
    checkpoint: Artifact, importance: Path, weights: WeightSettings, out: Path, *, eight_group: int = -1
) -> None:
    """Round every linear layer of a checkpoint and write the grids, and the error left in each layer, into `out`.

    Args:
        checkpoint: safetensors.
        importance: folder that `write_importance` wrote.
        weights: 4 or 8 bits; `int8_layers` get 8 bits, with zero points where the format has them.
        out: an existing, empty folder.
        eight_group: inputs that share a scale in `int8_layers`; -1: one scale an output channel.

    Raises:
        CompressionError: a named layer does not exist, or a layer cannot be rounded.
    """
    from safetensors.torch import load_file

    from tasks.training.checkpoint import load_model

    found = load_file(importance / IMPORTANCE_FILE)
    tokens_BT = found.pop("tokens")
    check_layers_exist("int8_layers", weights.int8_layers, found)
    importance_of = {name: torch.lerp(each, each.mean(), _EVENED) for name, each in found.items()}
    model = load_model(checkpoint.folder, torch.float32)
    model.requires_grad_(False)
    grids: dict[str, Grid] = {}
    errors: dict[str, float] = {}
    for block in walk_blocks(model, tokens_BT, importance_of):
        for name, module in block.linears.items():
            is_eight = weights.bits == 8 or name in weights.int8_layers
            grid = round_layer(
                module.weight.data,
                block.hessians[name],
                bits=8 if is_eight else 4,
                symmetric=weights.symmetric,
                group_size=eight_group if name in weights.int8_layers else weights.group_size,
            )
            rounded = torch.from_numpy(grid.weights())
            errors[name] = _predicted_divergence(rounded - module.weight.data, block.hessians[name])
            grids[name] = grid
            module.weight.data = rounded
    save_grids(grids, out)
    (out / ERRORS_FILE).write_text(json.dumps(errors, indent=1), encoding="utf-8")


def _predicted_divergence(change_NK: Tensor, hessian_KK: Tensor) -> float:
    return 0.5 * float(((change_NK @ hessian_KK) * change_NK).sum())


def _tokens(folder: Path, texts: Sequence[str]) -> Tensor:
    """The texts end to end, EOS between them, in sequences of SEQUENCE_TOKENS: shape (B, T)."""
    from tasks.training.checkpoint import load_tokenizer

    tokenizer = load_tokenizer(folder)
    ids = [
        token
        for text in tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        for token in (tokenizer.eos_token_id, *text)
    ]
    count = len(ids) // SEQUENCE_TOKENS
    if count < 1:
        raise CompressionError(
            f"the calibration text has {len(ids)} tokens; gptq needs at least {SEQUENCE_TOKENS}; raise "
            "quality.text.calibration_sections or give a longer text"
        )
    return torch.tensor(ids[: count * SEQUENCE_TOKENS]).reshape(count, SEQUENCE_TOKENS)
