"""What ONNX Runtime's kernels cannot store, said before anything is built."""

from configs.weights import WeightSettings
from tasks.compression.error import CompressionError
from tasks.compression.onnx_matrix import GROUP_SIZES


def check_possible(weights: WeightSettings, *, calibration_texts: int, grids: bool) -> None:
    """Refuse a format that the ONNX path cannot build.

    Args:
        weights: the format.
        calibration_texts: how many there are.
        grids: whether finished grids are there.

    Raises:
        CompressionError: with the setting, its value, the rule and the way out.
    """
    if grids and not weights.is_from_grids:
        raise CompressionError(
            f"calibration is {weights.calibration} and grids are given; only gptq and source_grid are built from grids; use one of them"
        )
    if weights.bits == 32:
        return
    if weights.bits == 16:
        raise CompressionError(
            "bits is 16; ONNX Runtime's CPU kernels compute in f32 or on 4 and 8 bits; use bits: 32"
        )
    if weights.number != "int":
        raise CompressionError(
            f"number is {weights.number}; ONNX Runtime's MatMulNBits holds integers; use number: int, or engine: openvino"
        )
    if weights.int8_ratio:
        raise CompressionError(
            f"int8_ratio is {weights.int8_ratio}; the ONNX path does not rank layers; name them with int8_layers, use "
            "int8_ratio: 0, or engine: openvino"
        )
    if weights.embedding_bits == 16:
        raise CompressionError(
            "embedding_bits is 16; ONNX Runtime's CPU kernels take 4, 8 or 32; use one of them"
        )
    if weights.activations == "float":
        _check_groups(weights, grids=grids)
    else:
        _check_activations(weights, calibration_texts)


def _check_groups(weights: WeightSettings, *, grids: bool) -> None:
    if weights.group_size not in GROUP_SIZES:
        raise CompressionError(
            f"group_size is {weights.group_size} with bits: {weights.bits}; ONNX Runtime rounds in groups of "
            f"{', '.join(map(str, GROUP_SIZES))}; use one of them, or engine: openvino"
        )
    if not (weights.is_from_grids or weights.calibration in ("none", "hqq", "k_quant")):
        raise CompressionError(
            f"calibration is {weights.calibration}; the ONNX path has none, gptq, hqq, k_quant and source_grid; use one of these, "
            "or engine: openvino"
        )
    if weights.is_from_grids and not grids:
        raise CompressionError(
            f"calibration is {weights.calibration} and no grids are given; the ONNX path stores finished grids; build them "
            "first, or use calibration: k_quant"
        )
    if weights.calibration in ("hqq", "k_quant") and weights.symmetric:
        raise CompressionError(
            f"symmetric is true with calibration: {weights.calibration}, which fits a zero point; use symmetric: false"
        )


def _check_activations(weights: WeightSettings, calibration_texts: int) -> None:
    what = f"activations: {weights.activations}"
    if weights.group_size != -1:
        raise CompressionError(
            f"group_size is {weights.group_size} with {what}; integer matrix products have one scale an output channel; use "
            "group_size: -1, or activations: float"
        )
    if weights.activations == "int8_static" and not calibration_texts:
        raise CompressionError(
            "activations is int8_static and there is no calibration text; its scales come from one; use text with "
            "calibration_sections, or int8_dynamic"
        )
