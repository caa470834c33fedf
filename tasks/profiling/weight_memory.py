"""Bytes of weights in each storage format, scales and zero points included."""

from collections.abc import Iterable

from configs.engine import EngineName
from configs.weights import WeightSettings
from tasks.models.checkpoint import Architecture
from tasks.profiling.matrices import Matrix, embedding_matrices, linear_matrices, other_parameters

_OPENVINO_SCALE_BYTES = 2  # NNCF keeps scales in f16
_ONNX_SCALE_BYTES = 4  # MatMulNBits of an f32 graph


def plain_bytes(parameters: int, bits: float) -> int:
    """Bytes of so many values of so many bits each, without scales."""
    return round(parameters * bits / 8)


def quantized_bytes(
    matrices: Iterable[Matrix], bits: int, *, symmetric: bool, group_size: int, scale_bytes: int
) -> int:
    """Bytes of quantized matrices: values, a scale a group and, if asymmetric, a zero point a group.

    Args:
        matrices: at -1 one group an output channel, else groups of `group_size` along the inputs.
        bits: 4 or 8.
        symmetric: without zero points.
        group_size: weights that share a scale.
        scale_bytes: size of one scale.
    """
    values = groups = 0
    for matrix in matrices:
        values += matrix.elements
        groups += matrix.groups(group_size)
    zero_point_bits = 0 if symmetric else bits * groups
    return -(-(values * bits + zero_point_bits) // 8) + groups * scale_bytes


def weight_bytes(architecture: Architecture, weights: WeightSettings, engine: EngineName) -> int:
    """Weight bytes of the artifact that serves this format on this engine.

    OpenVINO (NNCF): exact. 4-bit linear layers in groups; the share `int8_ratio` of them, taken as evenly
    spread over the shapes, and embeddings of 8 bits are stored per channel, with the zero points of the
    format. Norms stay f32. ONNX Runtime: linear layers in groups; the embedding stays f32, and the output
    head is a matrix of its own, tied or not.

    Raises:
        ValueError: the shape of the model is not covered.
    """
    others = other_parameters(architecture)
    if weights.bits in (16, 32):
        return plain_bytes(architecture.parameters, weights.bits)
    linear, tables = linear_matrices(architecture), embedding_matrices(architecture)
    if engine == "onnxruntime":
        head = Matrix("lm_head", architecture.vocabulary, architecture.hidden, 1)
        packed = _grouped((*linear, head), weights, _ONNX_SCALE_BYTES)
        return packed + plain_bytes(tables[0].elements + others, 32)
    main = _grouped(linear, weights, _OPENVINO_SCALE_BYTES)
    eighth = _per_channel(linear, weights)
    return (
        round((1 - weights.int8_ratio) * main + weights.int8_ratio * eighth)
        + _tables(tables, weights)
        + plain_bytes(others, 16 if weights.embedding_bits == 16 else 32)
    )


def _grouped(matrices: Iterable[Matrix], weights: WeightSettings, scale_bytes: int) -> int:
    return quantized_bytes(
        matrices,
        weights.bits,
        symmetric=weights.symmetric,
        group_size=weights.group_size,
        scale_bytes=scale_bytes,
    )


def _per_channel(matrices: Iterable[Matrix], weights: WeightSettings) -> int:
    """8 bits per channel: NNCF's backup format."""
    return quantized_bytes(
        matrices, 8, symmetric=weights.symmetric, group_size=-1, scale_bytes=_OPENVINO_SCALE_BYTES
    )


def _tables(tables: Iterable[Matrix], weights: WeightSettings) -> int:
    match weights.embedding_bits:
        case 4:
            return _grouped(tables, weights, _OPENVINO_SCALE_BYTES)
        case 8:
            return _per_channel(tables, weights)
        case bits:
            return plain_bytes(sum(table.elements for table in tables), bits)
