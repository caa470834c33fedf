"""Bytes of weights in each storage format, scales and zero points included."""

from collections.abc import Iterable
from dataclasses import dataclass

from configs.engine import EngineName
from configs.weights import WeightSettings
from tasks.models.checkpoint import Architecture
from tasks.profiling.matrices import Matrix, embedding_matrices, linear_matrices, other_parameters


@dataclass(frozen=True)
class _Layout:
    """How an engine keeps scales and zero points."""

    scale_bytes: int
    zero_points_by_row: bool  # each row of zero points begins with a whole byte


_OPENVINO = _Layout(scale_bytes=2, zero_points_by_row=False)
_ONNX = _Layout(scale_bytes=4, zero_points_by_row=True)


def plain_bytes(parameters: int, bits: float) -> int:
    """Bytes of so many values of so many bits each, without scales."""
    return round(parameters * bits / 8)


def grouped_bytes(
    matrices: Iterable[Matrix], bits: int, *, symmetric: bool, group_size: int, layout: _Layout
) -> int:
    """Bytes of quantized matrices: values, a scale a group and, if asymmetric, a zero point a group.

    Args:
        matrices: at -1 one group an output channel, else groups of `group_size` along the inputs.
        bits: 4 or 8, of values and zero points.
        symmetric: without zero points.
        group_size: weights that share a scale; the last group of a row is padded.
        layout: of the engine.
    """
    total = 0
    for matrix in matrices:
        row_groups = 1 if group_size == -1 else -(-matrix.inputs // group_size)
        row_values = matrix.inputs if group_size == -1 else row_groups * group_size
        zero_bits = 0 if symmetric else row_groups * bits
        if layout.zero_points_by_row:
            zero_bits = -(-zero_bits // 8) * 8
        total += matrix.rows * (row_values * bits + zero_bits + row_groups * layout.scale_bytes * 8)
    return -(-total // 8)


def weight_bytes(architecture: Architecture, weights: WeightSettings, engine: EngineName) -> int:
    """Weight bytes of the artifact that serves this format on this engine; exact but for a few constants.

    OpenVINO (NNCF): linear layers of 4 bits in groups, of 8 bits per channel, as is an 8-bit embedding; the
    `int8_ratio` share of 4-bit layers, here spread evenly over the shapes, is 8 bits per channel too.
    ONNX Runtime: linear layers and embedding in groups; the tables of the rotary embedding are in the file.
    Norms stay f32. transformers serves the checkpoint itself, in the type it has.

    Raises:
        ValueError: the shape of the model is not covered.
    """
    others = other_parameters(architecture)
    match engine:
        case "openvino":
            return _openvino_bytes(architecture, weights, others)
        case "onnxruntime":
            rotary = (
                architecture.context_tokens * architecture.head_dim
            )  # half of the cosines, half of the sines
            linear = _at_bits(linear_matrices(architecture), weights.bits, weights, _ONNX)
            bits = weights.embedding_bits if weights.bits in (4, 8) else weights.bits
            tables = _at_bits(embedding_matrices(architecture), bits, weights, _ONNX)
            return linear + tables + plain_bytes(others + rotary, 32)
        case _:
            return plain_bytes(architecture.parameters, 32 if architecture.dtype == "F32" else 16)


def _openvino_bytes(architecture: Architecture, weights: WeightSettings, others: int) -> int:
    if weights.bits in (16, 32):
        return plain_bytes(architecture.parameters, weights.bits)
    linear = linear_matrices(architecture)
    per_channel = weights.model_copy(update={"group_size": -1})
    main = _at_bits(linear, weights.bits, weights, _OPENVINO)
    backup = _at_bits(linear, 8, per_channel, _OPENVINO)
    bits = weights.embedding_bits
    tables = _at_bits(
        embedding_matrices(architecture), bits, weights if bits == 4 else per_channel, _OPENVINO
    )
    mixed = round((1 - weights.int8_ratio) * main + weights.int8_ratio * backup)
    return mixed + tables + plain_bytes(others, 16 if bits == 16 else 32)


def _at_bits(matrices: Iterable[Matrix], bits: int, weights: WeightSettings, layout: _Layout) -> int:
    if bits in (16, 32):
        return plain_bytes(sum(matrix.elements for matrix in matrices), bits)
    return grouped_bytes(
        matrices, bits, symmetric=weights.symmetric, group_size=weights.group_size, layout=layout
    )
