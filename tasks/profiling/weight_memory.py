"""Bytes of weights in each storage format, scales and zero points included."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from configs.engine import EngineName
from configs.weights import WeightSettings
from tasks.models.checkpoint import Architecture
from tasks.profiling.matrices import Matrix, embedding_matrices, linear_matrices, other_parameters

LORA_RANK = 8  # of NNCF's low-rank correction; its factors have 8 bits and a zero point a row
ONNX_TABLE_GROUP = 32  # of token embedding and output head where linear layers have one scale a channel


@dataclass(frozen=True)
class _Layout:
    """How an engine keeps scales and zero points."""

    scale_bytes: int
    zero_points_by_row: bool  # each row of zero points begins with a whole byte


_OPENVINO = _Layout(scale_bytes=2, zero_points_by_row=False)
_OPENVINO_STATIC = _Layout(scale_bytes=4, zero_points_by_row=False)
_VLLM = _Layout(scale_bytes=2, zero_points_by_row=False)
_ONNX = _Layout(scale_bytes=4, zero_points_by_row=True)


def plain_bytes(parameters: int, bits: float) -> int:
    """Bytes of so many values of so many bits each, without scales."""
    return round(parameters * bits / 8)


def grouped_bytes(
    matrices: Iterable[Matrix], bits: int, *, zero_bits: int, group_size: int, layout: _Layout
) -> int:
    """Bytes of quantized matrices: values, a scale a group and, if asymmetric, a zero point a group.

    Args:
        matrices: at -1 one group an output channel, else groups of `group_size` along the inputs.
        bits: 4 or 8, of values.
        zero_bits: of the zero point of a group; 0: symmetric.
        group_size: weights that share a scale; the last group of a row is padded.
        layout: of the engine.
    """
    total = 0
    for matrix in matrices:
        row_groups = 1 if group_size == -1 else -(-matrix.inputs // group_size)
        row_values = matrix.inputs if group_size == -1 else row_groups * group_size
        row_zero_bits = row_groups * zero_bits
        if layout.zero_points_by_row:
            row_zero_bits = -(-row_zero_bits // 8) * 8
        total += matrix.rows * (row_values * bits + row_zero_bits + row_groups * layout.scale_bytes * 8)
    return -(-total // 8)


def weight_bytes(architecture: Architecture, weights: WeightSettings, engine: EngineName) -> int:
    """Weight bytes of the artifact that serves this format on this engine; exact but for a few constants.

    OpenVINO (NNCF): linear layers of 4 bits in groups, of 8 bits per channel, as are an 8-bit embedding and the
    layers of `int8_layers`; the `int8_ratio` share of 4-bit layers, here spread evenly over the shapes, is 8 bits
    per channel too; the zero points of a source's own grid have 16 bits. A low-rank correction adds its factors to
    each layer of 4 bits, static activations a scale to each input of the attention's and the MLP's last projection.
    ONNX Runtime: linear layers and embedding in groups, the layers of `int8_layers` in the same groups at 8 bits;
    integer activations: linear layers per channel. The tables of the rotary embedding are in the file.
    vLLM: linear layers packed in groups, embedding and head plain; norms as in the checkpoint.
    Norms stay f32. transformers serves the checkpoint itself, in the type it has. `max_bytes_fraction` is taken as filled; with
    `max_rounding_nats` nobody knows the layers yet, and all are counted at 4 bits.

    Raises:
        ValueError: the shape of the model is not covered.
    """
    if weights.max_bytes_fraction is not None:
        return round(weights.max_bytes_fraction * plain_bytes(architecture.parameters, 32))
    others = other_parameters(architecture)
    match engine:
        case "openvino":
            return _openvino_bytes(architecture, weights, others)
        case "onnxruntime":
            return _onnx_bytes(architecture, weights, others)
        case "vllm" if weights.bits in (4, 8):
            return _vllm_bytes(architecture, weights, others)
        case _:
            return plain_bytes(architecture.parameters, 32 if architecture.dtype == "F32" else 16)


def _openvino_bytes(architecture: Architecture, weights: WeightSettings, others: int) -> int:
    if weights.bits in (16, 32):
        return plain_bytes(architecture.parameters, weights.bits)
    static = weights.activations == "int8_static"
    layout = _OPENVINO_STATIC if static else _OPENVINO
    named, rest = _split_named(linear_matrices(architecture), weights.int8_layers)
    per_channel = weights.model_copy(update={"group_size": -1})
    zero_bits = 16 if weights.calibration == "source_grid" else _zero_bits(weights, weights.bits)
    main = grouped_bytes(
        rest, weights.bits, zero_bits=zero_bits, group_size=weights.group_size, layout=layout
    )
    backup = _at_bits(rest, 8, per_channel, layout)
    mixed = round((1 - weights.int8_ratio) * main + weights.int8_ratio * backup)
    bits = weights.embedding_bits
    tables = _at_bits(embedding_matrices(architecture), bits, weights if bits == 4 else per_channel, layout)
    extra = 0
    if "lora_correction" in weights.calibration:
        extra += round((1 - weights.int8_ratio) * _correction_bytes(rest))
    if static:
        queries = architecture.heads * architecture.head_dim
        extra += plain_bytes(architecture.layers * (queries + architecture.intermediate), 32)
    return mixed + _at_bits(named, 8, per_channel, layout) + tables + extra + plain_bytes(others, 32)


def _onnx_bytes(architecture: Architecture, weights: WeightSettings, others: int) -> int:
    rotary = architecture.context_tokens * architecture.head_dim  # half of the cosines, half of the sines
    plain = plain_bytes(others + rotary, 32)
    linear, tables = linear_matrices(architecture), embedding_matrices(architecture)
    if weights.bits in (16, 32):
        return _at_bits([*linear, *tables], weights.bits, weights, _ONNX) + plain
    table_group = ONNX_TABLE_GROUP if weights.group_size == -1 else weights.group_size
    table_format = weights.model_copy(update={"group_size": table_group})
    plain += _at_bits(tables, weights.embedding_bits, table_format, _ONNX)
    if weights.activations != "float":  # a zero point a channel even where all are 128
        return plain + grouped_bytes(linear, 8, zero_bits=8, group_size=-1, layout=_ONNX)
    named, rest = _split_named(linear, weights.int8_layers)
    # These have zero points of their own, symmetric or not.
    fitted = {"hqq": 32, "source_grid": 32, "k_quant": 4}.get(weights.calibration)
    zero_bits = _zero_bits(weights, weights.bits) if fitted is None else fitted
    main = grouped_bytes(rest, weights.bits, zero_bits=zero_bits, group_size=weights.group_size, layout=_ONNX)
    return plain + main + _at_bits(named, 8, weights, _ONNX)


def _vllm_bytes(architecture: Architecture, weights: WeightSettings, others: int) -> int:
    linear = linear_matrices(architecture)
    packed = weights.activations == "float"
    shapes = 16 * sum(matrix.count for matrix in linear) if packed else 0  # two int64 a layer
    tables = _at_bits(embedding_matrices(architecture), weights.embedding_bits, weights, _VLLM)
    plain = plain_bytes(others, 32 if architecture.dtype == "F32" else 16)
    return _at_bits(linear, weights.bits, weights, _VLLM) + shapes + tables + plain


def _split_named(
    matrices: Sequence[Matrix], names: Sequence[str]
) -> tuple[tuple[Matrix, ...], tuple[Matrix, ...]]:
    """The matrices of the named layers ("model.layers.0.mlp.up_proj"), and the others."""
    counts = Counter(name.rsplit(".", 1)[-1] for name in names)
    named = tuple(replace(matrix, count=counts[matrix.name]) for matrix in matrices)
    rest = tuple(replace(matrix, count=matrix.count - counts[matrix.name]) for matrix in matrices)
    return named, rest


def _correction_bytes(matrices: Iterable[Matrix]) -> int:
    """Two factors a layer, of 8 bits with a scale and a zero point a row."""
    factors = [
        factor
        for matrix in matrices
        for factor in (
            replace(matrix, outputs=LORA_RANK),
            replace(matrix, inputs=LORA_RANK),
        )
    ]
    return grouped_bytes(factors, 8, zero_bits=8, group_size=-1, layout=_OPENVINO)


def _zero_bits(weights: WeightSettings, bits: int) -> int:
    return 0 if weights.symmetric else bits


def _at_bits(matrices: Iterable[Matrix], bits: int, weights: WeightSettings, layout: _Layout) -> int:
    if bits in (16, 32):
        return plain_bytes(sum(matrix.elements for matrix in matrices), bits)
    return grouped_bytes(
        matrices, bits, zero_bits=_zero_bits(weights, bits), group_size=weights.group_size, layout=layout
    )
