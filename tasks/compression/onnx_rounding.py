"""Weights of an ONNX graph rounded to nearest in groups, for ONNX Runtime's kernels.

Every MatMul by a constant becomes a MatMulNBits, and the token embedding a GatherBlockQuantized; where
embedding and output head are tied they keep sharing one matrix. The rounding is MLAS's own, the one that
onnxruntime.quantization calls; with `symmetric`, a group's scale carries the sign of its largest weight, so
that all 2^bits levels are used.

ACCURACY_LEVEL is the type that the kernels turn activations into: 4 is int8, in groups of `group_size` and
on the fly; 1 would be f32. It is part of the format: quality is measured with it, and the graph carries it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxruntime.capi._pybind_state import quantize_matmul_4bits, quantize_matmul_8bits

from configs.weights import WeightSettings
from tasks.compression.error import CompressionError

ACCURACY_LEVEL = 4
_MICROSOFT = "com.microsoft"
_SMALL_BYTES = 1024  # smaller tensors stay in the graph: ONNX Runtime must read shapes while it loads


@dataclass(frozen=True)
class RoundedMatrix:
    """A matrix of K inputs and N outputs, rounded in groups along K.

    Attributes:
        packed: uint8, shape (N, groups, group_size * bits / 8); the last group is padded with zeros.
        scales: f32, shape (N, groups).
        zero_points: uint8, shape (N, groups * bits / 8), rounded up; None where symmetric.
    """

    packed: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.uint8] | None


def round_matrix(
    weights_KN: NDArray[np.float32], bits: int, group_size: int, *, symmetric: bool
) -> RoundedMatrix:
    """Round to nearest.

    Raises:
        CompressionError: a weight is not finite.
    """
    if not np.isfinite(weights_KN).all():
        raise CompressionError("a weight matrix holds NaN or infinity; repair the checkpoint")
    inputs, outputs = weights_KN.shape
    groups, in_byte = -(-inputs // group_size), 8 // bits
    padded = np.zeros((groups * group_size, outputs), np.float32)
    padded[:inputs] = weights_KN
    packed = np.zeros((outputs, groups, group_size // in_byte), np.uint8)
    scales = np.zeros((outputs, groups), np.float32)
    zero_points = np.zeros((outputs, -(-groups // in_byte)), np.uint8)
    kernel = quantize_matmul_4bits if bits == 4 else quantize_matmul_8bits
    kernel(packed, padded, scales, zero_points, group_size, outputs, inputs, symmetric)
    return RoundedMatrix(packed, scales, None if symmetric else zero_points)


def round_graph(source: Path, target: Path, weights: WeightSettings) -> int:
    """Write the graph at `source` with rounded weights to `target`; the number of matrices that were rounded.

    Raises:
        CompressionError: no linear layer was found to round.
    """
    model = ir.load(source)
    graph = model.graph
    head = next(output for output in graph.outputs if output.name == "logits").producer()
    rounded = 0
    node: Any  # onnx_ir types every input as optional
    for node in list(graph):
        bits = weights.embedding_bits if node is head else weights.bits
        if node.op_type == "MatMul" and node.inputs[1].const_value is not None and bits != 32:
            _round_linear(graph, node, bits, weights)
            rounded += node is not head
        elif (
            _is_embedding(node) and node.inputs[0].const_value is not None and weights.embedding_bits != 32
        ):  # not tied: a matrix of its own
            table_VK = node.inputs[0].const_value.numpy()
            matrix = _round(table_VK.T, weights.embedding_bits, weights)
            values = _initializers(graph, node.inputs[0].name, matrix)
            _look_up_rounded(graph, node, values, table_VK.shape[1], weights)
    if not rounded:
        raise CompressionError(
            f"{weights.label} rounded no matrix: the graph has no MatMul by a constant; use engine: openvino"
        )
    for name in [
        name for name, value in graph.initializers.items() if not value.uses() and not value.is_graph_output()
    ]:
        del graph.initializers[name]
    model.metadata_props.update(
        {"keiryo.weights": weights.label, "keiryo.accuracy_level": str(ACCURACY_LEVEL)}
    )
    ir.save(model, target, external_data=f"{target.name}.data", size_threshold_bytes=_SMALL_BYTES)
    return rounded


def _round_linear(graph: Any, node: Any, bits: int, weights: WeightSettings) -> None:
    """Replace a MatMul by a MatMulNBits, and the embedding that is tied to it."""
    weight = node.inputs[1]
    inputs, outputs = weight.const_value.shape
    matrix = _round(weight.const_value.numpy(), bits, weights)
    values = _initializers(graph, weight.name, matrix)
    attributes = [
        ir.AttrInt64(name, value)
        for name, value in (("K", inputs), ("N", outputs), ("bits", bits), ("block_size", weights.group_size))
    ] + [ir.AttrInt64("accuracy_level", ACCURACY_LEVEL)]
    linear = ir.Node(_MICROSOFT, "MatMulNBits", [node.inputs[0], *values], attributes, name=node.name)
    _replace(graph, node, [linear])
    for user, _ in list(weight.uses()):
        if user.op_type == "Transpose":  # to the tied embedding
            (gather, _), *others = user.outputs[0].uses()
            if others or not _is_embedding(gather):
                raise CompressionError(
                    "the tied embedding of this graph is not read by one Gather; use embedding_bits: 32"
                )
            _look_up_rounded(graph, gather, values, inputs, weights)
            graph.remove(user, safe=True)


def _is_embedding(node: Any) -> bool:
    return bool(
        node.op_type == "Gather" and node.inputs[1].name == "input_ids" and len(node.inputs[0].shape) == 2
    )


def _round(weights_KN: NDArray[np.float32], bits: int, weights: WeightSettings) -> RoundedMatrix:
    return round_matrix(weights_KN, bits, weights.group_size, symmetric=weights.symmetric)


def _look_up_rounded(graph: Any, gather: Any, values: list[Any], width: int, weights: WeightSettings) -> None:
    """Replace a Gather by a GatherBlockQuantized on a rounded matrix, shape (V, groups, bytes)."""
    shape = _constant(graph, "embedding_shape", [values[0].const_value.shape[0], -1])
    flat = ir.Node("", "Reshape", [values[0], shape])
    attributes = {
        "bits": weights.embedding_bits,
        "block_size": weights.group_size,
        "gather_axis": 0,
        "quantize_axis": 1,
    }
    new = [
        flat,
        ir.Node(
            _MICROSOFT,
            "GatherBlockQuantized",
            [flat.outputs[0], gather.inputs[1], *values[1:]],
            [ir.AttrInt64(name, value) for name, value in attributes.items()],
            name=f"{gather.name}BlockQuantized",
        ),
    ]
    if width % weights.group_size:  # the rows are padded to whole groups
        bounds = [
            _constant(graph, f"embedding_{name}", [at])
            for name, at in (("begin", 0), ("end", width), ("axis", -1))
        ]
        new.append(ir.Node("", "Slice", [new[-1].outputs[0], *bounds]))
    _replace(graph, gather, new)


def _initializers(graph: Any, name: str, matrix: RoundedMatrix) -> list[Any]:
    arrays = {"packed": matrix.packed, "scales": matrix.scales, "zero_points": matrix.zero_points}
    return [_constant(graph, f"{name}.{part}", array) for part, array in arrays.items() if array is not None]


def _constant(graph: Any, name: str, value: Any) -> Any:
    array = value if isinstance(value, np.ndarray) else np.array(value, np.int64)
    graph.initializers[name] = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    return graph.initializers[name]


def _replace(graph: Any, old: Any, new: list[Any]) -> None:
    """Put `new` where `old` was; the last one's output takes over the name, the type and every use."""
    before, after = old.outputs[0], new[-1].outputs[0]
    after.name, after.shape, after.type = before.name, before.shape, before.type
    graph.insert_before(old, new)
    ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
    graph.remove(old, safe=True)
