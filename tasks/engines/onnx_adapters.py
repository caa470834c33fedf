"""Low-rank adapters as inputs of an ONNX decoder: what a run is given decides which one it computes with.

Beside every adapted matrix product stands a second path, `x @ a @ b`, whose two factors are inputs of the graph. Without an adapter
they have rank 0. The rounded weights stay as they are, so that one session serves the release and all its adapters.

Nodes are known by their names (onnx_names.py); a product of queries, keys and values that was split when it was rounded ends in the
name of its first layer (".../attn/qkv_proj/MatMul/k_proj").
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tasks.engines.adapter_weights import Factors
from tasks.engines.onnx_names import FUSED, layer_name
from tasks.engines.protocol import EngineUnavailable

PREFIX = "adapter."  # of the inputs' names

Feeds = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class AdaptedProduct:
    """A matrix product with its second path.

    Attributes:
        name: of its inputs, PREFIX and the layers' place: `name.a`, shape (I, R), and `name.b`, shape (R, O).
        inputs: I.
        layers: names in the checkpoint of the layers that it computes, and how many of its columns each has.
    """

    name: str
    inputs: int
    layers: tuple[tuple[str, int], ...]

    def feeds(self, adapter: Mapping[str, Factors]) -> Feeds:
        """The factors of an adapter for this product; layers computed together stand block by block."""
        factors = [adapter.get(layer) for layer, _ in self.layers]
        ranks = [0 if each is None else len(each[0]) for each in factors]
        b_RO = np.zeros((sum(ranks), sum(width for _, width in self.layers)), np.float32)
        row = column = 0
        downs = [np.zeros((0, self.inputs), np.float32)]
        for (layer, width), rank, each in zip(self.layers, ranks, factors, strict=True):
            if each is not None:
                down_RI, up_OR = each
                if down_RI.shape[1] != self.inputs or len(up_OR) != width:
                    raise EngineUnavailable(
                        f"the adapter of {layer} maps {down_RI.shape[1]} inputs to {len(up_OR)} outputs, the layer {self.inputs} to "
                        f"{width}; it belongs to another model"
                    )
                downs.append(down_RI)
                b_RO[row : row + rank, column : column + width] = up_OR.T
            row, column = row + rank, column + width
        return {
            f"{self.name}.a": np.ascontiguousarray(np.concatenate(downs).T),
            f"{self.name}.b": b_RO,
        }


def add_adapter_inputs(
    graph: Any, adapters: Mapping[str, Mapping[str, Factors]], widths: Mapping[str, int]
) -> tuple[AdaptedProduct, ...]:
    """Give every product that an adapter changes its second path.

    Args:
        graph: of an exported decoder; changed in place.
        adapters: their factors, by layer, by adapter.
        widths: outputs of each of FUSED_PARTS, in their order.

    Raises:
        EngineUnavailable: the graph does not have an adapted layer as a product of its own.
    """
    adapted = {layer for adapter in adapters.values() for layer in adapter}
    products: list[AdaptedProduct] = []
    for node in list(graph) if adapted else ():
        layers = _layers_of(node, widths)
        if adapted.isdisjoint(layer for layer, _ in layers):
            continue
        adapted -= {layer for layer, _ in layers}
        name = f"{PREFIX}{layers[0][0]}"
        products.append(AdaptedProduct(name, _inputs_of(node), layers))
        _add_path(graph, node, name)
    if adapted:
        raise EngineUnavailable(
            f"the adapters change {sorted(adapted)[0]}, which this graph does not compute as a product of its own; merge them, or "
            "serve on engine: openvino"
        )
    return tuple(products)


def feeds_of(products: Sequence[AdaptedProduct], adapter: Mapping[str, Factors]) -> Feeds:
    """The inputs that make a run compute with an adapter; without factors: with the base weights alone."""
    return {name: factor for product in products for name, factor in product.feeds(adapter).items()}


def _add_path(graph: Any, node: Any, name: str) -> None:
    a, b = (
        ir.Value(name=f"{name}.{end}", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([None, None]))
        for end in "ab"
    )
    graph.inputs.extend([a, b])
    output = node.outputs[0]
    users = list(output.uses())
    down = ir.Node("", "MatMul", [node.inputs[0], a], name=f"{name}/down")
    up = ir.Node("", "MatMul", [down.outputs[0], b], name=f"{name}/up")
    added = ir.Node("", "Add", [output, up.outputs[0]], name=f"{name}/add")
    graph.insert_after(node, [down, up, added])
    for user, place in users:
        user.replace_input_with(place, added.outputs[0])


def _layers_of(node: Any, widths: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """The layers that a product computes and their columns; none where the node is no product of a layer."""
    path, product, part = node.name.partition("/MatMul")
    is_linear = node.op_type == "MatMulNBits" or (
        node.op_type == "MatMul" and node.inputs[1].const_value is not None
    )
    if not product or not is_linear or "layers." not in path:
        return ()
    name, left = layer_name(path), _outputs_of(node)
    if not name.endswith(FUSED):
        return ((name, left),)
    stem = name.removesuffix(FUSED)
    layers: list[tuple[str, int]] = []
    for kind in widths:
        if not layers and part and kind != part.strip("/"):
            continue
        layers.append((f"{stem}.{kind}", widths[kind]))
        left -= widths[kind]
        if left == 0:
            return tuple(layers)
    return ()


def _outputs_of(node: Any) -> int:
    return int(node.attributes["N"].as_int() if node.op_type == "MatMulNBits" else node.inputs[1].shape[1])


def _inputs_of(node: Any) -> int:
    return int(node.attributes["K"].as_int() if node.op_type == "MatMulNBits" else node.inputs[1].shape[0])
