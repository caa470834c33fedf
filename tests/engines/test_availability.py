import sys

import pytest
from vllm_here import needs_vllm

from tasks.engines import availability


def test_machine_names_what_this_cpu_has() -> None:
    machine = availability.probe_machine()
    assert set(machine.cpu_features) <= set(availability.CPU_FEATURES)
    assert machine.python == ".".join(map(str, sys.version_info[:3]))


def test_a_working_engine_lists_its_devices() -> None:
    found = availability.probe_engine("openvino")
    assert found.works
    assert "CPU" in found.devices
    assert found.versions["openvino"].startswith("2026")
    assert not found.needs


def test_a_broken_engine_says_why_and_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(availability._PROBES, "onnxruntime", "import no_such_library; d = []")
    found = availability.probe_engine("onnxruntime")
    assert not found.works
    assert "no_such_library" in found.reason
    assert found.needs


def test_vllm_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEIRYO_VLLM_PYTHON", "/no/such/python")
    found = availability.probe_engine("vllm")
    assert not found.works
    assert "make vllm" in found.needs
    assert "/no/such/python" in found.reason


@needs_vllm
def test_vllm_is_asked_in_its_own_environment() -> None:
    found = availability.probe_engine("vllm")
    assert found.works
    assert found.devices[1].startswith("vllm ")
