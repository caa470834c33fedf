"""`autocast: auto` is decided by the rates of this machine, once."""

from types import SimpleNamespace
from typing import Any

import pytest

from configs.training import TrainingSettings
from tasks.engines.arithmetic import MultiplyRates, multiply_rates
from tasks.release import autocast
from tasks.release.autocast import decide_autocast
from tasks.store.store import Store


@pytest.fixture
def workspace(tmp_path) -> Any:
    return SimpleNamespace(store=Store(tmp_path / "store"), config=SimpleNamespace(threads=2))


@pytest.mark.parametrize(
    ("f32", "bf16", "wanted"), [(300, 160, "none"), (100, 90, "bf16"), (100, 200, "bf16")]
)
def test_float32_has_to_be_clearly_faster(workspace, monkeypatch, f32, bf16, wanted):
    monkeypatch.setattr(autocast, "multiply_rates", lambda: MultiplyRates(f32_gflops=f32, bf16_gflops=bf16))
    assert decide_autocast(workspace, TrainingSettings()).autocast == wanted


def test_what_was_decided_stays_decided(workspace, monkeypatch):
    rates = iter([MultiplyRates(f32_gflops=300, bf16_gflops=100)])
    monkeypatch.setattr(autocast, "multiply_rates", lambda: next(rates))
    first = decide_autocast(workspace, TrainingSettings())
    assert decide_autocast(workspace, TrainingSettings()) == first


@pytest.mark.parametrize("asked", ["none", "bf16"])
def test_what_the_user_asked_for_is_not_measured(workspace, monkeypatch, asked):
    monkeypatch.setattr(autocast, "multiply_rates", lambda: pytest.fail("measured"))
    assert decide_autocast(workspace, TrainingSettings(autocast=asked)).autocast == asked


def test_the_rates_are_those_of_products():
    """As numpy's product in float32 has them, within a factor: another library, the same processor."""
    import time

    import numpy as np

    left, right = np.ones((512, 1024), np.float32), np.ones((1024, 1024), np.float32)
    seconds = []
    for _ in range(7):
        began_s = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - began_s)
    peer = 2 * 512 * 1024**2 / min(seconds) / 1e9
    assert peer / 4 < multiply_rates().f32_gflops < 4 * peer
