"""The linear layers of an ONNX decoder, as the builder exports it, by the names that the checkpoint gives them."""

from dataclasses import dataclass
from typing import Any

from tasks.compression.error import CompressionError
from tasks.engines.onnx_names import FUSED, FUSED_PARTS, layer_name


@dataclass(frozen=True)
class Part:
    """A linear layer: its name in the checkpoint ("model.layers.0.mlp.up_proj"), and how many columns of a MatMul it is."""

    name: str
    outputs: int


def is_linear(node: Any) -> bool:
    """Whether a node multiplies by a constant matrix."""
    return bool(
        node.op_type == "MatMul" and node.inputs[1].const_value is not None and len(node.inputs[1].shape) == 2
    )


def parts_of(node: Any) -> tuple[Part, ...]:
    """The layers that a MatMul computes: three where query, key and value are fused, else one.

    Raises:
        CompressionError: the attention behind a fused MatMul does not tell the heads.
    """
    outputs = node.inputs[1].shape[1]
    name = layer_name(node.name.removesuffix("/MatMul"))
    if not name.endswith(FUSED):
        return (Part(name, outputs),)
    attention = node
    while attention.op_type in ("MatMul", "Add"):  # an Add is the bias
        users = [user for user, _ in attention.outputs[0].uses()]
        if len(users) != 1:
            break
        attention = users[0]
    if attention.op_type != "GroupQueryAttention":
        raise CompressionError(
            f"{node.name} is read by {attention.op_type}, not by GroupQueryAttention; the layers of a fused projection "
            "cannot be told; use engine: openvino"
        )
    heads, kv_heads = (attention.attributes[key].as_int() for key in ("num_heads", "kv_num_heads"))
    width = outputs // (heads + 2 * kv_heads)
    stem = name.removesuffix(FUSED)
    counts = zip(FUSED_PARTS, (heads, kv_heads, kv_heads), strict=True)
    return tuple(Part(f"{stem}.{part}", count * width) for part, count in counts)
