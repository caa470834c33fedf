"""The importance of tokens: labels are drawn from the model's own prediction."""

import subprocess
import sys

import pytest
import torch

from tasks.compression.fisher import _slope_of_drawn
from tasks.store.artifact import Artifact

_PEAKS_MIB = """
import sys
import torch
from tasks.compression.fisher import curvature
from tasks.serving.memory_peak import MemoryPeak
from tasks.training.checkpoint import load_model

torch.set_num_threads(2)
model = load_model(sys.argv[1], torch.float32)
for batches in (1, 5):
    with MemoryPeak() as peak:
        curvature(model, torch.ones(2 * batches, 256, dtype=torch.long), seed=0)
    print(peak.growth_bytes / 2**20)
"""


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


@pytest.mark.model
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read as Linux tells it")
def test_a_long_text_takes_no_more_memory_than_a_short_one(demo_checkpoint: Artifact):
    """In a process of its own, whose heap has no holes yet."""
    done = subprocess.run(
        [sys.executable, "-c", _PEAKS_MIB, demo_checkpoint.folder], capture_output=True, text=True, check=True
    )
    short_mib, long_mib = map(float, done.stdout.split()[-2:])
    assert long_mib < 1.15 * short_mib  # 1.4 times where holes are left
