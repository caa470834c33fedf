"""What an IR stores: its weight matrices by layer, type and size."""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MODEL_XML = "openvino_model.xml"
MODEL_BIN = "openvino_model.bin"
_ADAPTERS = ("_lora_A", "_lora_B")  # NNCF's names for the two factors of a correction


@dataclass(frozen=True)
class WeightFormats:
    """Matrices of an IR by stored type ("u4", "nf4", "i8", "f32", ...), scales, zero points and adapters left out.

    Attributes:
        matrices: number of matrices.
        elements: number of weights.
        layers: stored type of each linear layer by its name, "model.layers.0.mlp.up_proj"; token embedding and
            output head left out.
        adapters: low-rank corrections, two factors each, beside the matrices.
        quantized_activations: inputs of layers that the graph itself rounds.
        file_bytes: size of the weight file, scales and all.
    """

    matrices: dict[str, int]
    elements: dict[str, int]
    layers: dict[str, str]
    adapters: int
    quantized_activations: int
    file_bytes: int


def weight_formats(folder: Path) -> WeightFormats:
    """Count the weight matrices of the IR in `folder` by stored type."""
    import openvino as ov

    model = ov.Core().read_model(folder / MODEL_XML)
    matrices: Counter[str] = Counter()
    elements: Counter[str] = Counter()
    layers = {}
    linear = set(linear_layers(model))
    for constant in weight_matrices(model):
        stored = constant.get_element_type().to_string()
        matrices[stored] += 1
        elements[stored] += int(np.prod(list(constant.shape)))
        if layer_name(constant) in linear:
            layers[layer_name(constant)] = stored
    return WeightFormats(
        matrices=dict(matrices),
        elements=dict(elements),
        layers=layers,
        adapters=len(adapter_matrices(model)) // 2,
        quantized_activations=sum(node.get_type_name() == "FakeQuantize" for node in model.get_ops()),
        file_bytes=(folder / MODEL_BIN).stat().st_size,
    )


def weight_matrices(model: Any) -> Iterator[Any]:
    """The constants that are weights, shape (N, K) or (N, G, K / G); a scale or zero point ends in a dimension of 1."""
    for node in _matrix_constants(model):
        if not node.get_friendly_name().endswith(_ADAPTERS):
            yield node


def adapter_matrices(model: Any) -> list[Any]:
    """Both factors of every low-rank correction, shapes (rank, K) and (N, rank)."""
    return [node for node in _matrix_constants(model) if node.get_friendly_name().endswith(_ADAPTERS)]


def layer_name(constant: Any) -> str:
    """The name that a layer has in the checkpoint: "model.layers.0.mlp.up_proj".

    Full quantization renames constants; then the MatMul that reads them says it ("__module.NAME/aten::linear/MatMul").
    """
    name = str(constant.get_friendly_name())
    if name.endswith(".weight"):
        return name.removeprefix("self.").removesuffix(".weight")
    node = constant
    while not (found := str(node.get_friendly_name())).startswith("__module."):
        users = node.output(0).get_target_inputs() if node.get_output_size() else ()
        if not users:
            return name
        node = next(iter(users)).get_node()
    return found.removeprefix("__module.").split("/")[0]


def linear_layers(model: Any) -> list[str]:
    """Names of the linear layers, in the order of the graph; token embedding and output head left out."""
    tables = {layer_name(table) for table in _tables(model)}
    return [name for name in map(layer_name, weight_matrices(model)) if name not in tables]


def halve_tables(model: Any) -> None:
    """Store token embedding and output head in halves: `save_model` leaves them f32 where other weights are integers."""
    from openvino import opset13 as ops

    for table in _tables(model):
        if table.get_element_type().to_string() != "f32":
            continue
        users = list(table.output(0).get_target_inputs())
        halves = ops.constant(table.data.astype(np.float16), name=table.get_friendly_name())
        widened = ops.convert(halves, "f32")
        for user in users:
            user.replace_source_output(widened.output(0))


def embedding_users(model: Any) -> list[str]:
    """Nodes of an f32 IR that read the widest matrices by rows: the token lookup and the output head."""
    uses = [use.get_node() for table in _tables(model) for use in table.output(0).get_target_inputs()]
    return [node.get_friendly_name() for node in uses]


def stored_weights(model: Any, layers: Collection[str]) -> dict[str, Any]:
    """The numbers of the matrices of some layers and their scales, by the constant's name."""
    matrices = {node.get_friendly_name() for node in weight_matrices(model) if layer_name(node) in layers}
    return {
        node.get_friendly_name(): node.data
        for node in model.get_ops()
        if node.get_type_name() == "Constant" and node.get_friendly_name().removesuffix("/scale") in matrices
    }


def _matrix_constants(model: Any) -> Iterator[Any]:
    for node in model.get_ops():
        if (
            node.get_type_name() == "Constant"
            and len(node.shape) >= 2
            and min(node.shape[0], node.shape[-1]) > 1
        ):
            yield node


def _tables(model: Any) -> list[Any]:
    rows = max(int(constant.shape[0]) for constant in weight_matrices(model))
    return [constant for constant in weight_matrices(model) if constant.shape[0] == rows]
