"""The importance of tokens: labels are drawn from the model's own prediction."""

import torch

from tasks.compression.fisher import _slope_of_drawn


def test_labels_are_drawn_with_the_models_own_chances():
    logits_V = torch.tensor([2.0, 0.0, -1.0, 1.0, -30.0])
    slopes_NV = _slope_of_drawn(logits_V.repeat(20_000, 1), torch.Generator().manual_seed(0))
    assert slopes_NV.sum(-1).abs().max() < 1e-6
    assert ((slopes_NV < 0).sum(-1) == 1).all()
    drawn_V = (slopes_NV < 0).float().mean(0)
    torch.testing.assert_close(drawn_V, logits_V.softmax(-1), atol=0.012, rtol=0)  # 3.4 standard errors


def test_a_slope_is_that_of_the_log_likelihood():
    logits_NV = torch.randn(64, 50, generator=torch.Generator().manual_seed(1), requires_grad=True)
    slopes_NV = _slope_of_drawn(logits_NV.detach(), torch.Generator().manual_seed(2))
    (-logits_NV.log_softmax(-1)[torch.arange(64), slopes_NV.argmin(-1)].sum()).backward()
    torch.testing.assert_close(slopes_NV, logits_NV.grad)
