"""Which linear layers a mixed-precision OpenVINO artifact keeps at 8 bits."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path


def eight_bit_layers(ir: Path) -> frozenset[str]:
    """Names of the linear layers ("model.layers.0.mlp.up_proj") whose weights are stored in 8 bits.

    Args:
        ir: the `openvino_model.xml` of an artifact; its constants are named after the exported weights.
    """
    constants = (layer for layer in ElementTree.parse(ir).iter("layer") if layer.get("type") == "Const")
    stored = {
        layer.get("name", ""): data.get("element_type") for layer in constants for data in layer.iter("data")
    }
    return frozenset(
        name.removeprefix("self.").removesuffix(".weight")
        for name, element in stored.items()
        if element in ("i8", "u8") and ".layers." in name and name.endswith(".weight")
    )
