"""From a checkpoint to the grids of all its linear layers: GPTQ over the decoder, block by block, at 4 and 8 bits.

A token's weight in a layer's Hessian is what the loss feels of it (`tasks.compression.fisher`), pulled towards the mean of all tokens,
since few tokens of large weight would be fitted too closely. That weight depends on the checkpoint and the text alone and is
shared by formats; those with output feedback read pairs of outputs, too, and share theirs. The error left in a layer, in the same unit,
is its predicted share of the divergence: it says which layers are worth 8 bits (`tasks.compression.mixed_precision`).
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from configs.weights import WeightSettings
from tasks.compression.block_inputs import walk_blocks
from tasks.compression.error import CompressionError
from tasks.compression.fisher import curvature
from tasks.compression.gptq import round_layer
from tasks.compression.grid import Grid, save_grids
from tasks.compression.layer_names import check_layers_exist
from tasks.compression.mixed_precision import ERRORS_FILE
from tasks.compression.output_feedback import damped_slopes, round_with_output_feedback
from tasks.store.artifact import Artifact

SEQUENCE_TOKENS = 256
_EVENED = 0.3  # share of the mean in a token's weight: docs/log.md
IMPORTANCE_FILE = "importance.safetensors"


def write_importance(
    checkpoint: Artifact, texts: Sequence[str], out: Path, *, of_outputs: bool = False
) -> None:
    """Write the tokens of the calibration text and their weight at every layer, with `of_outputs` pairs of outputs, too, into `out`.

    Raises:
        CompressionError: the text is too short.
    """
    from safetensors.torch import save_file

    from tasks.training.checkpoint import load_model

    model = load_model(checkpoint.folder, torch.float32)
    tokens_BT = _tokens(checkpoint.folder, texts)
    found = curvature(model, tokens_BT, seed=0, of_outputs=of_outputs)
    pairs = {
        f"{name}/{part:04}": each for name, parts in found.outputs.items() for part, each in enumerate(parts)
    }
    save_file({"tokens": tokens_BT} | found.tokens | pairs, out / IMPORTANCE_FILE)


def write_grids_of(
    checkpoint: Artifact, importance: Path, weights: WeightSettings, out: Path, *, eight_group: int = -1
) -> None:
    """Round every linear layer of a checkpoint and write the grids, and the error left in each layer, into `out`.

    Args:
        checkpoint: safetensors.
        importance: folder that `write_importance` wrote.
        weights: 4 or 8 bits; `int8_layers` get 8 bits, with zero points where the format has them. Of layers at 8 bits no error
            is fed to other outputs: there is little to win.
        out: an existing, empty folder.
        eight_group: inputs that share a scale in `int8_layers`; -1: one scale an output channel.

    Raises:
        CompressionError: a named layer does not exist, or a layer cannot be rounded.
    """
    from safetensors.torch import load_file

    from tasks.training.checkpoint import load_model

    found = load_file(importance / IMPORTANCE_FILE)
    tokens_BT = found.pop("tokens")
    slopes = _slopes(found)
    check_layers_exist("int8_layers", weights.int8_layers, found)
    importance_of = {name: torch.lerp(each, each.mean(), _EVENED) for name, each in found.items()}
    model = load_model(checkpoint.folder, torch.float32)
    model.requires_grad_(False)
    grids: dict[str, Grid] = {}
    errors: dict[str, float] = {}
    for block in walk_blocks(model, tokens_BT, importance_of):
        for name, module in block.linears.items():
            is_eight = weights.bits == 8 or name in weights.int8_layers
            group_size = eight_group if name in weights.int8_layers else weights.group_size
            weight, hessian = module.weight.data, block.hessians[name]
            felt = damped_slopes(slopes[name]) if weights.output_feedback and not is_eight else []
            grid = _rounded(weight, hessian, felt, 8 if is_eight else 4, weights.symmetric, group_size)
            rounded = torch.from_numpy(grid.weights())
            errors[name] = _predicted_divergence(rounded - weight, hessian, felt)
            grids[name] = grid
            module.weight.data = rounded
    save_grids(grids, out)
    (out / ERRORS_FILE).write_text(json.dumps(errors, indent=1), encoding="utf-8")


def _rounded(
    weight: Tensor, hessian: Tensor, felt: Sequence[Tensor], bits: int, symmetric: bool, group_size: int
) -> Grid:
    if felt:
        return round_with_output_feedback(
            weight, hessian, felt, bits=bits, symmetric=symmetric, group_size=group_size
        )
    return round_layer(weight, hessian, bits=bits, symmetric=symmetric, group_size=group_size)


def _slopes(found: dict[str, Tensor]) -> dict[str, list[Tensor]]:
    """Pairs of outputs by the layer's name, its parts in order; they are taken out of `found`."""
    slopes: dict[str, list[Tensor]] = {}
    for key in sorted(key for key in found if "/" in key):
        slopes.setdefault(key.split("/")[0], []).append(found.pop(key))
    return slopes


def _predicted_divergence(change_NK: Tensor, hessian_KK: Tensor, felt: Sequence[Tensor]) -> float:
    moved_NK = change_NK @ hessian_KK
    if not felt:
        return 0.5 * float((moved_NK * change_NK).sum())
    sizes = [len(each) for each in felt]
    parts = zip(felt, torch.split(moved_NK, sizes), torch.split(change_NK, sizes), strict=True)
    return 0.5 * sum(float(((slope @ moved) * change).sum()) for slope, moved, change in parts)


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
