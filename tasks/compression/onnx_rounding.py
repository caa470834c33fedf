"""Weights of an ONNX graph rounded in groups, for ONNX Runtime's kernels.

Every MatMul by a constant becomes a MatMulNBits, and the token embedding a GatherBlockQuantized; where embedding and output head
are tied they keep sharing one matrix, which is always rounded to nearest. Layers that a fused MatMul computes together stay
together if they are stored alike, else they become a MatMulNBits each.

ACCURACY_LEVEL is the type that the kernels turn activations into: 4 is int8, in groups of `group_size` and
on the fly; 1 would be f32. It is part of the format: quality is measured with it, and the graph carries it.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from configs.weights import WeightSettings
from tasks.compression.error import CompressionError
from tasks.compression.grid import Grid
from tasks.compression.layer_names import check_layers_exist
from tasks.compression.onnx_layers import Part, is_linear, parts_of
from tasks.compression.onnx_matrix import (
    RoundedMatrix,
    hqq_matrix,
    k_quant_matrix,
    matrix_of_grid,
    round_matrix,
    stacked,
)

ACCURACY_LEVEL = 4
_MICROSOFT = "com.microsoft"
_SMALL_BYTES = 1024  # smaller tensors stay in the graph: ONNX Runtime must read shapes while it loads
_SAME_LAYER_COSINE = 0.5  # a grid of 4 bits lies above 0.9 to its weights, another layer's about 0


def round_graph(
    source: Path, target: Path, weights: WeightSettings, grids: Mapping[str, Grid] | None = None
) -> int:
    """Write the graph at `source` with rounded weights to `target`; the number of linear layers that were rounded.

    Args:
        source: the f32 graph.
        target: the new graph; its weights go beside it, into a file named after it with ".data".
        weights: the format.
        grids: finished grids of all linear layers, by name; the graph gets exactly these numbers.

    Raises:
        CompressionError: no linear layer was found to round, a layer that is named does not exist, or the grids are not those of
            this model and format.
    """
    model = ir.load(source)
    graph = model.graph
    head = next(output for output in graph.outputs if output.name == "logits").producer()
    layers = {node: parts_of(node) for node in graph if is_linear(node) and node is not head}
    names = [part.name for parts in layers.values() for part in parts]
    if not names:
        raise CompressionError(
            f"{weights.label} rounded no matrix: the graph has no MatMul by a constant; use engine: openvino"
        )
    check_layers_exist("int8_layers", weights.int8_layers, names)
    if grids is not None:
        _check_grids(grids, names, weights)
    for node, parts in layers.items():
        _round_linear(graph, node, parts, weights, grids)
    _round_ends(graph, head, weights)
    save_graph(model, target, weights)
    return len(names)


def round_ends(source: Path, target: Path, weights: WeightSettings) -> None:
    """Write the graph at `source` with only its token embedding and output head rounded to `target`."""
    model = ir.load(source)
    head = next(output for output in model.graph.outputs if output.name == "logits").producer()
    _round_ends(model.graph, head, weights)
    save_graph(model, target, weights)


def save_graph(model: Any, target: Path, weights: WeightSettings) -> None:
    """Write a graph, its tensors beside it, without those that nothing reads."""
    initializers = model.graph.initializers
    for name in [n for n, value in initializers.items() if not value.uses() and not value.is_graph_output()]:
        del initializers[name]
    model.metadata_props.update(
        {"keiryo.weights": weights.label, "keiryo.accuracy_level": str(ACCURACY_LEVEL)}
    )
    ir.save(model, target, external_data=f"{target.name}.data", size_threshold_bytes=_SMALL_BYTES)


def _check_grids(grids: Mapping[str, Grid], names: list[str], weights: WeightSettings) -> None:
    check_layers_exist("a grid", grids, names)
    missing = [name for name in names if name not in grids]
    if missing:
        raise CompressionError(
            f"{len(missing)} of {len(names)} linear layers have no grid, {missing[0]} first; build the grids of all layers"
        )
    for name, grid in grids.items():
        bits = 8 if name in weights.int8_layers else weights.bits
        if grid.bits != bits:
            raise CompressionError(
                f"the grid of {name} has {grid.bits} bits; the format wants {bits}; build the grids for {weights.label}"
            )


def _round_linear(
    graph: Any,
    node: Any,
    parts: tuple[Part, ...],
    weights: WeightSettings,
    grids: Mapping[str, Grid] | None,
) -> None:
    """Replace a MatMul by a MatMulNBits, or by one for each run of layers that are stored alike."""
    weights_KN = node.inputs[1].const_value.numpy()
    columns = np.split(weights_KN, np.cumsum([part.outputs for part in parts])[:-1], axis=1)
    made = [
        (part, _rounded_layer(part.name, layer_KN, weights, grids))
        for part, layer_KN in zip(parts, columns, strict=True)
    ]
    new = []
    for _, run in itertools.groupby(made, key=lambda pair: pair[1].layout):
        layers = list(run)
        own = "" if len(layers) == len(made) else f"/{layers[0][0].name.rsplit('.', 1)[-1]}"
        matrix = stacked([rounded for _, rounded in layers])
        new.append(_linear_node(graph, node, f"{node.name}{own}", matrix, len(weights_KN))[0])
    if len(new) > 1:
        joined = [linear.outputs[0] for linear in new]
        new.append(ir.Node("", "Concat", joined, [ir.AttrInt64("axis", -1)], name=f"{node.name}/Concat"))
    _replace(graph, node, new)


def _rounded_layer(
    name: str,
    weights_KN: NDArray[np.float32],
    weights: WeightSettings,
    grids: Mapping[str, Grid] | None,
) -> RoundedMatrix:
    if grids is not None:
        matrix = matrix_of_grid(grids[name])
        _check_same_layer(name, grids[name].weights(), weights_KN.T)
        return matrix
    bits = 8 if name in weights.int8_layers else weights.bits
    if bits == 4 and weights.calibration == "hqq":
        return hqq_matrix(weights_KN, weights.group_size)
    if bits == 4 and weights.calibration == "k_quant":
        return k_quant_matrix(weights_KN, weights.group_size)
    return round_matrix(weights_KN, bits, weights.group_size, symmetric=weights.symmetric)


def _check_same_layer(name: str, grid_NK: NDArray[np.float32], weights_NK: NDArray[np.float32]) -> None:
    """Refuse a grid that cannot come from the layer: names are only names."""
    if grid_NK.shape != weights_NK.shape:
        raise CompressionError(
            f"the grid of {name} is {grid_NK.shape}, the layer {weights_NK.shape} (outputs, inputs); build the grids of this model"
        )
    product = float(np.vdot(grid_NK, weights_NK))
    size = float(np.linalg.norm(grid_NK) * np.linalg.norm(weights_NK))
    if size and product / size < _SAME_LAYER_COSINE:
        raise CompressionError(
            f"the grid of {name} has a cosine of {product / size:.2f} to the layer's weights; a rounding of them is above "
            f"{_SAME_LAYER_COSINE}; build the grids of this model"
        )


def _round_ends(graph: Any, head: Any, weights: WeightSettings) -> None:
    """Round the output head and the token embedding, as one matrix where they are tied."""
    if weights.embedding_bits == 32:
        return
    embedding = next((node for node in graph if _is_embedding(node)), None)
    if is_linear(head):
        weight = head.inputs[1]
        width = weight.const_value.shape[0]
        new, values = _linear_node(
            graph, head, head.name, _round_table(weight.const_value.numpy(), weights), width
        )
        _replace(graph, head, [new])
        for user, _ in list(weight.uses()):
            if user.op_type == "Transpose":  # to the tied embedding
                (gather, _), *others = user.outputs[0].uses()
                if others or not _is_embedding(gather):
                    raise CompressionError(
                        "the tied embedding of this graph is not read by one Gather; use embedding_bits: 32"
                    )
                _look_up_rounded(graph, gather, values, width, weights)
                graph.remove(user, safe=True)
                embedding = None
    if embedding is not None and embedding.inputs[0].const_value is not None:  # a matrix of its own
        table_VK = embedding.inputs[0].const_value.numpy()
        values = _initializers(graph, embedding.inputs[0].name, _round_table(table_VK.T, weights))
        _look_up_rounded(graph, embedding, values, table_VK.shape[1], weights)


def _is_embedding(node: Any) -> bool:
    return bool(
        node.op_type == "Gather" and node.inputs[1].name == "input_ids" and len(node.inputs[0].shape) == 2
    )


def _round_table(weights_KN: NDArray[np.float32], weights: WeightSettings) -> RoundedMatrix:
    return round_matrix(weights_KN, weights.embedding_bits, table_group(weights), symmetric=weights.symmetric)


def table_group(weights: WeightSettings) -> int:
    """Weights of the embedding and the output head that share a scale; 32 where linear layers have one scale a channel."""
    return 32 if weights.group_size == -1 else weights.group_size


def _linear_node(
    graph: Any, node: Any, name: str, matrix: RoundedMatrix, inputs: int
) -> tuple[Any, list[Any]]:
    """A MatMulNBits on the activations of `node`, and its matrix as values of the graph."""
    values = _initializers(graph, f"{node.inputs[1].name}{name.removeprefix(node.name)}", matrix)
    attributes = {
        "K": inputs,
        "N": len(matrix.scales),
        "bits": matrix.bits,
        "block_size": matrix.group_size,
        "accuracy_level": ACCURACY_LEVEL,
    }
    linear = ir.Node(
        _MICROSOFT,
        "MatMulNBits",
        [node.inputs[0], *values],
        [ir.AttrInt64(key, value) for key, value in attributes.items()],
        name=name,
    )
    return linear, values


def _look_up_rounded(graph: Any, gather: Any, values: list[Any], width: int, weights: WeightSettings) -> None:
    """Replace a Gather by a GatherBlockQuantized on a rounded matrix, shape (V, groups, bytes)."""
    group_size = table_group(weights)
    shape = _constant(graph, "embedding_shape", [values[0].const_value.shape[0], -1])
    flat = ir.Node("", "Reshape", [values[0], shape])
    attributes = {
        "bits": weights.embedding_bits,
        "block_size": group_size,
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
    if width % group_size:  # the rows are padded to whole groups
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
