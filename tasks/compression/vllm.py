"""vLLM: a checkpoint whose linear layers are integers, in compressed-tensors' formats "pack-quantized" and "int-quantized".

For every linear layer of N outputs and K inputs in G groups:

    NAME.weight_packed   int32, (N, K * bits / 32): codes 0 to 2^bits - 1, the first input in the lowest bits of a word
    NAME.weight_scale    float16, (N, G); G is 1 with one scale an output channel
    NAME.weight_shape    int64, (2,): N and K

and in config.json a `quantization_config` that says so (https://github.com/vllm-project/compressed-tensors). A weight is
scale * (code - 2^(bits - 1)): vLLM's W4A16 and W8A16 kernels, and transformers with package compressed-tensors, compute with just the
numbers that the other engines have. Token embedding, output head and norms are plain tensors.

With activations: int8_dynamic ("int-quantized", W8A8) a layer has

    NAME.weight          int8, (N, K): code - 128
    NAME.weight_scale    float16, (N, 1)

and the engine rounds each token's activations to 8 bits with a scale of their own. vLLM's CPU build has kernels for W4A16 and W8A8, its
CUDA build for all three.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from configs.weights import WeightSettings
from tasks.compression.checkpoint_layers import is_linear, tensors
from tasks.compression.error import CompressionError
from tasks.compression.gptq import round_to_nearest
from tasks.compression.grid import Grid
from tasks.models.checkpoint_folder import INDEX, SINGLE, read_json
from tasks.store.artifact import Artifact

CONFIG = "config.json"
_WORD_BITS = 32
_TABLES = ("embed_tokens", "lm_head")
_FLOAT16_MAX = float(np.finfo(np.float16).max)


def build_vllm(
    checkpoint: Artifact, weights: WeightSettings, out: Path, grids: Mapping[str, Grid] | None = None
) -> None:
    """Write a checkpoint with packed linear layers, its tokenizer and its configuration into `out`.

    Args:
        checkpoint: safetensors.
        weights: the format: symmetric integers of 4 or 8 bits; `embedding_bits` 16 (halves) or 32.
        out: an existing, empty folder.
        grids: of all linear layers by name, with calibration: gptq; None: each is rounded to nearest.

    Raises:
        CompressionError: the format is impossible, or a layer cannot be rounded or packed.
    """
    from safetensors.torch import save_file

    objection = weights.vllm_objection
    if objection is not None:
        raise CompressionError(objection)
    if (weights.calibration == "gptq") != (grids is not None):
        raise CompressionError("grids go with calibration: gptq, and calibration: gptq with grids")
    made: dict[str, Tensor] = {}
    packed: set[str] = set()
    for name, tensor in tensors(checkpoint.folder):
        if is_linear(name, tensor):
            layer = name.removesuffix(".weight")
            packed.add(layer)
            grid = _grid(layer, tensor, weights, grids)
            made |= _packed(layer, grid) if weights.activations == "float" else _plain(layer, grid)
        else:
            halves = weights.embedding_bits == 16 and name.split(".")[-2] in _TABLES
            made[name] = _halved(name, tensor) if halves else tensor
    _check_all_packed(packed, grids)
    save_file(made, out / SINGLE, metadata={"format": "pt"})
    for entry in checkpoint.manifest.files:
        if not entry.path.endswith(".safetensors") and entry.path not in (INDEX, CONFIG):
            shutil.copyfile(checkpoint.folder / entry.path, out / entry.path)
    config = read_json(checkpoint.folder / CONFIG) | {"quantization_config": quantization_config(weights)}
    (out / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def quantization_config(weights: WeightSettings) -> dict[str, Any]:
    """What config.json says of the packed layers, as compressed-tensors defines it."""
    grouped, rounds_activations = weights.group_size != -1, weights.activations == "int8_dynamic"
    scheme = {
        "num_bits": weights.bits,
        "type": "int",
        "symmetric": True,
        "strategy": "group" if grouped else "channel",
        "group_size": weights.group_size if grouped else None,
        "dynamic": False,
    }
    tokens = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    group = {
        "targets": ["Linear"],
        "weights": scheme,
        "input_activations": tokens if rounds_activations else None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized" if rounds_activations else "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def pack_codes(codes_NK: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """Codes of `bits` bits each in words of 32, along the inputs: shape (N, K * bits / 32).

    Raises:
        CompressionError: the inputs do not fill whole words.
    """
    in_a_word = _WORD_BITS // bits
    outputs, inputs = codes_NK.shape
    if inputs % in_a_word:
        raise CompressionError(
            f"a linear layer has {inputs} inputs; {bits}-bit weights for vLLM are packed by {in_a_word}; use engine: openvino"
        )
    shifts = np.arange(in_a_word, dtype=np.uint32) * bits
    fields = codes_NK.reshape(outputs, -1, in_a_word).astype(np.uint32) << shifts
    words: NDArray[np.uint32] = np.bitwise_or.reduce(fields, axis=-1)
    return words.view(np.int32)


def _halved(name: str, tensor: Tensor) -> Tensor:
    if float(tensor.abs().max()) > _FLOAT16_MAX:
        raise CompressionError(f"embedding_bits is 16; {name} holds a value beyond float16's range; use 32")
    return tensor.half()


def _grid(layer: str, weight_NK: Tensor, weights: WeightSettings, grids: Mapping[str, Grid] | None) -> Grid:
    if grids is not None:
        if layer not in grids:
            raise CompressionError(
                f"the calibrated grids hold no layer {layer}; build them from this checkpoint"
            )
        return grids[layer]
    return round_to_nearest(
        weight_NK.float(), bits=weights.bits, symmetric=True, group_size=weights.group_size
    )


def _packed(layer: str, grid: Grid) -> dict[str, Tensor]:
    return {
        f"{layer}.weight_packed": torch.from_numpy(pack_codes(grid.codes, grid.bits)),
        f"{layer}.weight_scale": torch.from_numpy(grid.scales),
        f"{layer}.weight_shape": torch.tensor(grid.codes.shape),
    }


def _plain(layer: str, grid: Grid) -> dict[str, Tensor]:
    return {
        f"{layer}.weight": torch.from_numpy((grid.codes.astype(np.int16) - 128).astype(np.int8)),
        f"{layer}.weight_scale": torch.from_numpy(grid.scales),
    }


def _check_all_packed(packed: set[str], grids: Mapping[str, Grid] | None) -> None:
    if not packed:
        raise CompressionError(
            "the checkpoint has no linear layer that could be packed; nothing was quantized"
        )
    if grids is not None and (left := sorted(set(grids) - packed)):
        raise CompressionError(
            f"{len(left)} rounded layers are not in the checkpoint, {left[0]} first; build them from it"
        )
