"""What a weight format must fulfil: possible before NNCF begins, and really there when it has ended.

NNCF skips a method that finds nothing to do in an architecture with no more than a log line.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from configs.weights import WeightSettings
from tasks.compression.error import CompressionError
from tasks.compression.layer_names import check_layers_exist
from tasks.compression.openvino_matrices import (
    MODEL_XML,
    WeightFormats,
    adapter_matrices,
    layer_name,
    linear_layers,
    stored_weights,
    weight_formats,
    weight_matrices,
)
from tasks.compression.openvino_nncf import compress_weights, round_layers

FEW_LAYERS = 7
"""One block of a Llama."""

_ELSEWHERE = {
    "gptq": "gptq is built from grids and not by NNCF; build the grids, or use calibration: nncf_gptq",
    "source_grid": "the source's grids are kept and not made by NNCF; build the grids, or use calibration: none",
    "hqq": "hqq and k_quant are ONNX Runtime's; use engine: onnxruntime, or calibration: awq+scale_estimation",
    "k_quant": "hqq and k_quant are ONNX Runtime's; use engine: onnxruntime, or calibration: awq+scale_estimation",
}


def check_possible(model: Any, weights: WeightSettings) -> None:
    """Refuse what NNCF or the CPU plugin cannot do, before any work.

    Raises:
        CompressionError: it cannot; says which setting, and the way out.
    """
    if weights.calibration in _ELSEWHERE:
        raise CompressionError(f"calibration is {weights.calibration}; {_ELSEWHERE[weights.calibration]}")
    if weights.activations == "int8_dynamic":
        raise CompressionError(
            "activations is int8_dynamic; OpenVINO's CPU plugin rounds activations on the fly whatever the graph says; "
            "use activations: float with the engine's activation_group: 32, or engine: onnxruntime"
        )
    if weights.activations == "int8_static" and not weights.symmetric:
        raise CompressionError(
            "symmetric is false with activations: int8_static; the int8 kernels take weights without zero points; "
            "use symmetric: true"
        )
    if weights.int8_ratio == 1:
        raise CompressionError("int8_ratio is 1; bits: 4 must be left to some layer; use bits: 8")
    if weights.bits == 8 and weights.group_size != -1:
        raise CompressionError(
            f"group_size is {weights.group_size} with bits: 8; OpenVINO's 8-bit weights are per channel; "
            "use group_size: -1"
        )
    if weights.bits == 8 and weights.embedding_bits == 4:
        raise CompressionError(
            "embedding_bits is 4 with bits: 8; it must not be below bits; use embedding_bits: 8"
        )
    if weights.embedding_bits == 4 and "lora_correction" in weights.calibration:
        raise CompressionError(
            f"embedding_bits is 4 with calibration: {weights.calibration}; the correction needs a matrix product and "
            "NNCF finds a token lookup; use embedding_bits: 8"
        )
    _check_group_size(model, weights)
    _check_named(model, weights)


def _check_group_size(model: Any, weights: WeightSettings) -> None:
    for constant in weight_matrices(model):
        width = int(constant.shape[-1])
        if weights.group_size != -1 and width % weights.group_size:
            fits = [size for size in (256, 128, 64, 32, 16) if width % size == 0]
            raise CompressionError(
                f"group_size is {weights.group_size}; it must divide the {width} inputs of "
                f"{constant.get_friendly_name()}; use one of {fits} or -1"
            )


def _check_named(model: Any, weights: WeightSettings) -> None:
    known = linear_layers(model)
    check_layers_exist("int8_layers", weights.int8_layers, known)
    if set(known) <= set(weights.int8_layers):
        raise CompressionError(
            "int8_layers names every linear layer; bits: 4 must be left to some; use bits: 8"
        )


def check_calibrated(compressed: Any, folder: Path, weights: WeightSettings) -> None:
    """Refuse a calibration without effect.

    A few layers are rounded to nearest first: where these came out otherwise, the others need not be (NNCF takes seconds for all).

    Args:
        compressed: the model it made.
        folder: of the f32 IR.
        weights: the format.

    Raises:
        CompressionError: integers and scales are all those of rounding to nearest, or a layer has no correction.
    """
    import openvino as ov

    if "lora_correction" in weights.calibration.split("+"):
        _check_corrected(compressed, weights)
    if weights.calibration == "lora_correction":
        return
    model = ov.Core().read_model(folder / MODEL_XML)
    if not weights.int8_ratio:  # else it is NNCF's choice which layers have 4 bits
        layers = [name for name in linear_layers(model) if name not in weights.int8_layers][-FEW_LAYERS:]
        if _changed(compressed, round_layers(model, weights, layers), layers):
            return
        model = ov.Core().read_model(folder / MODEL_XML)
    rounded = compress_weights(model, weights, [])
    if not _changed(compressed, rounded, {layer_name(constant) for constant in weight_matrices(rounded)}):
        raise CompressionError(
            f"calibration: {weights.calibration} left every weight as rounding to nearest leaves it; "
            "it does not apply to this model; use another method or none"
        )


def _changed(compressed: Any, rounded: Any, layers: Collection[str]) -> bool:
    """Whether any number of these layers differs."""
    found, plain = stored_weights(compressed, layers), stored_weights(rounded, layers)
    return any(not np.array_equal(found[name], plain[name]) for name in plain)


def _check_corrected(compressed: Any, weights: WeightSettings) -> None:
    factors = adapter_matrices(compressed)
    flat = [node.get_friendly_name() for node in factors if np.ptp(node.data) == 0]
    four_bits = sum(node.get_element_type().bitwidth == 4 for node in weight_matrices(compressed))
    if flat or len(factors) != 2 * four_bits:
        raise CompressionError(
            f"calibration: {weights.calibration} corrected {len(factors) // 2} of {four_bits} layers of 4 bits, "
            f"{len(flat)} of them by nothing; it does not apply to this model; use another method or none"
        )


def check_stored(out: Path, weights: WeightSettings) -> None:
    """Refuse an IR whose matrices are not stored as the format says.

    Raises:
        CompressionError: no matrix, or not every one, is in the asked types; says what was found.
    """
    formats = weight_formats(out)
    wanted = _wanted_type(weights)
    if not formats.matrices.get(wanted):
        raise CompressionError(
            f"{weights.label} left no matrix in {wanted} (found {formats.matrices}); choose another format"
        )
    left = formats.matrices.get("f32", 0) if weights.bits < 32 else 0
    if left and weights.embedding_bits != 32:
        raise CompressionError(f"{weights.label} left {left} matrices in f32; choose another format")
    if weights.activations == "int8_static" and not formats.quantized_activations:
        raise CompressionError(
            f"{weights.label} left every activation in float; this model has no layer that NNCF covers; use "
            "activations: float"
        )
    if weights.bits == 4 and not weights.int8_ratio:
        _check_eight_bits(formats, weights)


def _wanted_type(weights: WeightSettings) -> str:
    if weights.bits in (16, 32):
        return f"f{weights.bits}"
    if weights.number == "nf4":
        return "nf4"
    return f"{'i' if weights.symmetric else 'u'}{weights.bits}"


def _check_eight_bits(formats: WeightFormats, weights: WeightSettings) -> None:
    found = {name for name, stored in formats.layers.items() if stored in ("i8", "u8")}
    wrong = sorted(found ^ set(weights.int8_layers))
    if wrong:
        raise CompressionError(
            f"{weights.label} must keep the layers of int8_layers at 8 bits and no other; {', '.join(wrong)} came out "
            "otherwise; name layers that NNCF compresses"
        )
