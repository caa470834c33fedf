"""Grids of linear layers written into an OpenVINO graph and read from one: the subgraph that its CPU plugin fuses into the product.

    Constant(u4 or u8) -> Convert(f16) -> Subtract(zero) -> Multiply(scale) -> Reshape -> Convert(f32) -> MatMul

This is the form in which NNCF stores its own weights, so that every kernel that serves those serves these, and whoever reads
grids can read NNCF's.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.compression.error import CompressionError
from tasks.compression.grid import Grid
from tasks.compression.layer_names import check_layers_exist
from tasks.compression.openvino_matrices import layer_name, linear_layers, weight_matrices


def write_grids(model: Any, grids: Mapping[str, Grid]) -> None:
    """Replace the f32 weights of an exported graph by grids, in place.

    Args:
        model: an `openvino.Model` with f32 weights.
        grids: by the names of the linear layers; each must be in the graph.

    Raises:
        CompressionError: a layer is not in the graph, or has another shape there.
    """
    constants = {layer_name(node): node for node in weight_matrices(model)}
    check_layers_exist("a grid", grids, constants)
    for name, grid in grids.items():
        node = constants[name]
        if tuple(node.shape) != grid.codes.shape:
            raise CompressionError(
                f"layer {name} is {tuple(node.shape)} in the graph and {grid.codes.shape} as a grid; export again"
            )
        weight = _subgraph(grid, node.get_friendly_name())
        for reader in list(node.output(0).get_target_inputs()):
            reader.replace_source_output(weight.output(0))
    model.validate_nodes_and_infer_types()


def read_grids(model: Any) -> dict[str, Grid]:
    """The grid of every linear layer of a compressed graph, by the layer's name.

    Raises:
        CompressionError: a layer is not stored as integers with scales.
    """
    constants = {
        node.get_friendly_name(): node for node in model.get_ops() if node.get_type_name() == "Constant"
    }
    linear = set(linear_layers(model))
    matrices = {layer_name(node): node for node in weight_matrices(model)}
    return {name: _grid(matrices[name], constants) for name in matrices if name in linear}


def _grid(node: Any, constants: Mapping[str, Any]) -> Grid:
    stored, name = node.get_element_type().to_string(), node.get_friendly_name()
    scale = constants.get(f"{name}/scale")
    if stored not in ("i4", "u4", "i8", "u8") or scale is None:
        raise CompressionError(
            f"layer {name} is stored as {stored}; only integers with scales make a grid; use number: int and bits: 4 or 8"
        )
    outputs, zero = int(node.shape[0]), constants.get(f"{name}/zero_point")
    return Grid(
        bits=node.get_element_type().bitwidth,
        codes=_codes(node).reshape(outputs, -1),
        scales=scale.get_data(dtype=np.float16).reshape(outputs, -1).copy(),
        zeros=None if zero is None else _codes(zero).reshape(outputs, -1),
    )


def _codes(node: Any) -> NDArray[np.uint8]:
    """A constant of the narrow type as unsigned codes: what `_integers` was given."""
    bits, packed = node.get_element_type().bitwidth, node.data.view(np.uint8).reshape(-1)
    values = packed if bits == 8 else np.stack([packed & 15, packed >> 4], -1).reshape(-1)
    values = values[: int(np.prod(list(node.shape)))]
    signed = node.get_element_type().to_string().startswith("i")
    codes: NDArray[np.uint8] = values ^ np.uint8(2 ** (bits - 1)) if signed else values.copy()
    return codes


def _subgraph(grid: Grid, name: str) -> Any:
    import openvino.opset13 as ops

    outputs, groups = grid.scales.shape
    shape = (outputs, groups, grid.group_size) if groups > 1 else grid.codes.shape
    one_each = (outputs, groups, 1) if groups > 1 else (outputs, 1)
    codes = _integers(grid.codes.reshape(shape), grid, name)
    node = ops.convert(codes, "f16")
    if grid.zeros is not None:
        zeros = _integers(grid.zeros.reshape(one_each), grid, f"{name}/zero_point")
        node = ops.subtract(node, ops.convert(zeros, "f16"))
    node = ops.multiply(node, ops.constant(grid.scales.reshape(one_each), name=f"{name}/scale"))
    if groups > 1:
        node = ops.reshape(node, np.array(grid.codes.shape, np.int64), special_zero=False)
    return ops.convert(node, "f32")


def _integers(codes: NDArray[np.uint8], grid: Grid, name: str) -> Any:
    """A constant of the narrow type: unsigned where there are zero points, else signed about 2^(bits - 1)."""
    import openvino as ov
    from openvino.op import Constant

    signed = grid.zeros is None
    values = codes ^ 2 ** (grid.bits - 1) if signed else codes  # two's complement of code - 2^(bits - 1)
    if grid.bits == 4:
        flat = values.reshape(-1)
        packed = flat[0::2] | (flat[1::2] << 4)
        tensor = ov.Tensor(packed, ov.Shape(list(codes.shape)), ov.Type.i4 if signed else ov.Type.u4)
    else:
        tensor = ov.Tensor(values.view(np.int8) if signed else values)
    constant = Constant(tensor, shared_memory=False)
    constant.set_friendly_name(name)
    return constant
