"""Energy counters: what is there is counted, over a wrap too; what is not there is unknown."""

from types import SimpleNamespace

import pytest
import torch

from tasks.serving.energy import EnergyMeter, gpu_counters, rapl_counters
from tasks.serving.nvml import open_gpus


def zone(root, name, energy_uj, range_uj=1_000_000):
    folder = root / name
    folder.mkdir()
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return folder / "energy_uj"


def test_packages_are_added_and_a_wrap_is_seen(tmp_path):
    first, second = zone(tmp_path, "intel-rapl:0", 900_000), zone(tmp_path, "intel-rapl:1", 0)
    zone(tmp_path, "intel-rapl:0:0", 5)  # cores, a part of the package
    zone(tmp_path, "intel-rapl-mmio:0", 5)
    meter = EnergyMeter(rapl_counters(tmp_path))
    first.write_text("100000")  # through the end: 100,001 + 100,000
    second.write_text("300000")
    assert meter.joules() == pytest.approx(0.500001)
    second.write_text("400000")
    assert meter.joules() == pytest.approx(0.600001)


def test_no_counter_is_unknown(tmp_path):
    assert rapl_counters(tmp_path / "none") == []
    zone(tmp_path, "intel-rapl:0", "secret")
    assert rapl_counters(tmp_path) == []
    assert EnergyMeter([]).joules() is None


def absent(name):
    raise OSError(f"{name}: cannot open shared object file")


def test_the_memory_of_a_gpu():
    def one(pointer):
        pointer._obj.value = 1
        return 0

    def info(handle, pointer):
        pointer._obj.free, pointer._obj.used = 77 * 2**30, 3 * 2**30
        return code

    library = SimpleNamespace(
        nvmlInit_v2=lambda: 0,
        nvmlDeviceGetCount_v2=one,
        nvmlDeviceGetHandleByIndex_v2=lambda index, pointer: 0,
        nvmlDeviceGetMemoryInfo=info,
    )
    (gpu,) = open_gpus(lambda name: library)
    code = 0
    assert (gpu.used_bytes(), gpu.free_bytes()) == (3 * 2**30, 77 * 2**30)
    code = 3
    with pytest.raises(OSError, match="NVML does not tell the memory"):
        gpu.used_bytes()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_real_gpu_counts():
    meter = EnergyMeter.of_machine(gpu=True)
    ones = torch.ones(8192, 8192, device="cuda")
    for _ in range(50):
        ones @ ones
    torch.cuda.synchronize()
    assert meter.joules() > 1


def test_a_gpu_that_counts_and_one_that_does_not():
    assert open_gpus(absent) == []
    energy = {0: 5_000}

    def count(pointer):
        pointer._obj.value = 2
        return 0

    def handle(index, pointer):
        pointer._obj.value = index + 1
        return 0

    def total(handle, pointer):
        index = handle.value - 1
        pointer._obj.value = energy.get(index, 0)
        return 0 if index in energy else 3  # not supported

    library = SimpleNamespace(
        nvmlInit_v2=lambda: 0,
        nvmlDeviceGetCount_v2=count,
        nvmlDeviceGetHandleByIndex_v2=handle,
        nvmlDeviceGetTotalEnergyConsumption=total,
    )
    counters = gpu_counters(open_gpus(lambda name: library))
    assert len(counters) == 1
    energy[0] = 7_500
    assert EnergyMeter(counters).joules() == pytest.approx(2.5)
