"""Grids of linear layers written into an OpenVINO graph, as the subgraph that its CPU plugin fuses into the matrix product.

    Constant(u4 or u8) -> Convert(f16) -> Subtract(zero) -> Multiply(scale) -> Reshape -> Convert(f32) -> MatMul

This is the form in which NNCF stores its own weights, so that every kernel that serves those serves these.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.compression.error import CompressionError
from tasks.compression.grid import Grid
from tasks.compression.layer_names import check_layers_exist
from tasks.compression.openvino_matrices import layer_name, weight_matrices


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


def _subgraph(grid: Grid, name: str) -> Any:
    import openvino.opset13 as ops

    outputs, groups = grid.scales.shape
    shape = (outputs, groups, grid.group_size) if groups > 1 else grid.codes.shape
    one_each = (outputs, groups, 1) if groups > 1 else (outputs, 1)
    codes = _integers(grid.codes.reshape(shape), grid, name)
    node = ops.convert(codes, "f16")
    if grid.zeros is not None:
        node = ops.subtract(node, _zeros(grid.zeros.reshape(one_each), grid, f"{name}/zero_point"))
    node = ops.multiply(node, ops.constant(grid.scales.reshape(one_each), name=f"{name}/scale"))
    if groups > 1:
        node = ops.reshape(node, np.array(grid.codes.shape, np.int64), special_zero=False)
    return ops.convert(node, "f32")


def _zeros(zeros: NDArray[Any], grid: Grid, name: str) -> Any:
    """Integers of the narrow type; float16 as they are, which the CPU plugin (2026.4) fuses, too, but rounds no activations beside."""
    import openvino.opset13 as ops

    if zeros.dtype == np.float16:
        return ops.constant(zeros, name=name)
    return ops.convert(_integers(zeros, grid, name), "f16")


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
