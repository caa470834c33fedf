"""A language model's graph whose head runs only where a target is: a Gather on the hidden states stands before the last MatMul."""

from typing import Any

import numpy as np
from openvino import opset13 as ops

from tasks.engines.protocol import EngineError

_ELEMENTWISE = ("Convert", "Add", "Multiply", "Divide", "Tanh", "Clamp", "Reshape", "Unsqueeze", "Squeeze")


def gather_before_head(model: Any) -> None:
    """Let the last MatMul (hidden states to logits) run on the rows of a new input `target_rows` only.

    Raises:
        EngineError: no MatMul makes the logits.
    """
    node = (
        next(r for r in model.get_results() if "logits" in r.input_value(0).get_names())
        .input_value(0)
        .get_node()
    )
    while node.get_type_name() in _ELEMENTWISE:
        node = node.input_value(0).get_node()
    if node.get_type_name() != "MatMul":
        raise EngineError(
            f"the logits of this model come from {node.get_type_name()}, not from a MatMul: cannot score it"
        )
    hidden = node.input_value(0)
    width = hidden.get_partial_shape()[-1].get_length()
    rows = ops.parameter([-1], np.int64, name="target_rows")
    rows.output(0).get_tensor().set_names({"target_rows"})
    flat = ops.reshape(hidden, ops.constant(np.array([-1, width], np.int64)), False)
    node.input(0).replace_source_output(ops.gather(flat, rows, ops.constant(np.int64(0))).output(0))
    model.add_parameters([rows])
    model.validate_nodes_and_infer_types()
