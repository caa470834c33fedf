"""Our rounding against the weights that NNCF really writes."""

import nncf
import numpy as np
import openvino as ov
import pytest
import torch
from openvino import opset13

from tasks.adaptation.rounding import rounded, straight_through


def nncf_weight(weight: torch.Tensor, bits: int, symmetric: bool, group_size: int) -> torch.Tensor:
    """The weight as the compressed IR dequantizes it: the model multiplies it with the identity."""
    inputs = weight.shape[1]
    parameter = opset13.parameter([-1, inputs], np.float32)
    product = opset13.matmul(parameter, opset13.constant(weight.numpy()), False, True)
    model = ov.Model([product], [parameter])
    mode = nncf.CompressWeightsMode[f"INT{bits}_{'SYM' if symmetric else 'ASYM'}"]
    options = {} if bits == 8 else {"ratio": 1.0, "group_size": group_size, "all_layers": True}
    compressed = nncf.compress_weights(model, mode=mode, **options)
    stored = {
        op.get_element_type().get_type_name()
        for op in compressed.get_ops()
        if op.get_type_name() == "Constant"
    }
    assert stored & {"i4", "u4", "i8", "u8"}, stored
    exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    run = ov.Core().compile_model(compressed, "CPU", exact)
    return torch.from_numpy(run(np.eye(inputs, dtype=np.float32))[0].T.copy())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group_size"), [(4, 64), (4, -1), (8, -1)])
def test_rounding_is_what_nncf_writes(bits: int, group_size: int, symmetric: bool) -> None:
    weight = torch.randn(96, 192, generator=torch.Generator().manual_seed(3)) * 0.05
    weight[0] = weight[0].abs()  # a row without negative values
    weight[1, :64] = 0  # a group without values
    theirs = nncf_weight(weight, bits, symmetric, group_size)
    ours = rounded(weight, bits, symmetric, group_size)

    level = (theirs - weight).abs().max()
    # The IR multiplies in float16 (2^-11 of the value); a tie may fall to the other side.
    apart = (ours - theirs).abs() > 2**-10 * theirs.abs() + 1e-7
    assert apart.float().mean() < 1e-4
    assert (ours - weight).abs().max() == pytest.approx(level.item(), rel=1e-2)
    assert (ours - weight).abs().mean() > 0


def test_the_gradient_passes_the_rounding() -> None:
    weight = torch.randn(8, 16, requires_grad=True)
    slope = torch.randn(8, 16)
    straight_through(weight, 4, True, 8).backward(slope)
    torch.testing.assert_close(weight.grad, slope)
