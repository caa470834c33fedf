"""Names of onnxruntime-genai's builder and of the checkpoint, for the same linear layer.

The builder names a node after the path of its layer ("/model/layers.0/attn/o_proj/MatMul") and computes queries, keys and values in one
product, whose columns are those of the three layers in this order.
"""

FUSED = ".qkv_proj"
FUSED_PARTS = ("q_proj", "k_proj", "v_proj")


def layer_name(path: str) -> str:
    """The checkpoint's name of a layer by its path in the graph: "/model/layers.0/attn/o_proj" is "model.layers.0.self_attn.o_proj"."""
    return path.strip("/").replace("/", ".").replace(".attn.", ".self_attn.")
