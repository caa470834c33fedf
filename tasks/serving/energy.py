"""Energy of the machine's processors, where they count it: RAPL for Intel and AMD packages, NVML for NVIDIA GPUs.

RAPL counters are read from Linux's powercap tree (Documentation/power/powercap); they wrap at `max_energy_range_uj`, and since
the PLATYPUS attack (CVE-2020-8694) only root may read them. Virtual machines have none as a rule. What cannot be read is None, never 0.
"""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

POWERCAP = Path("/sys/class/powercap")
_NVML_OK = 0


class EnergyMeter:
    """Adds up what the counters have counted since the meter was made."""

    def __init__(self, counters: list["RaplCounter | NvmlCounter"]) -> None:
        """Take the counters; without any the meter knows nothing."""
        self._counters = counters

    @classmethod
    def of_machine(cls, *, gpu: bool) -> Self:
        """The processors' packages, and with `gpu` the NVIDIA GPUs."""
        return cls([*rapl_counters(), *(nvml_counters() if gpu else [])])

    def joules(self) -> float | None:
        """Energy since the meter was made; None where nothing counts."""
        if not self._counters:
            return None
        return sum(counter.joules() for counter in self._counters)


class RaplCounter:
    """One package. It must be read more often than it wraps, which takes minutes at full power."""

    def __init__(self, folder: Path) -> None:
        """Open a powercap zone.

        Raises:
            OSError: it may not be read.
            ValueError: it holds no number.
        """
        self._file = folder / "energy_uj"
        self._range_uj = int((folder / "max_energy_range_uj").read_text())
        self._last_uj = int(self._file.read_text())
        self._total_uj = 0

    def joules(self) -> float:
        """Energy since it was opened."""
        now_uj = int(self._file.read_text())
        self._total_uj += (now_uj - self._last_uj) % (self._range_uj + 1)
        self._last_uj = now_uj
        return self._total_uj / 1e6


class NvmlCounter:
    """One GPU, Volta or newer."""

    def __init__(self, library: Any, handle: Any) -> None:
        """Take a device of an initialized NVML."""
        self._library, self._handle = library, handle
        self._first_mj = self._millijoules()

    def joules(self) -> float:
        """Energy since it was opened."""
        return (self._millijoules() - self._first_mj) / 1e3

    def _millijoules(self) -> int:
        value = ctypes.c_ulonglong()
        if self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle, ctypes.byref(value)) != _NVML_OK:
            raise OSError("NVML does not tell the energy of this GPU")
        return value.value


def rapl_counters(root: Path = POWERCAP) -> list[RaplCounter]:
    """The packages that can be read; a package's parts (`intel-rapl:0:1`) are in it already."""
    found = []
    for zone in sorted(root.glob("*-rapl:*")) if root.is_dir() else ():
        if zone.name.count(":") != 1 or zone.name.startswith(
            "intel-rapl-mmio"
        ):  # mmio shows the same package again
            continue
        try:
            found.append(RaplCounter(zone))
        except (OSError, ValueError):
            continue
    return found


def nvml_counters(load: Callable[[str], Any] = ctypes.CDLL) -> list[NvmlCounter]:
    """The GPUs that tell their energy; none without the driver's library."""
    try:
        library = load("libnvidia-ml.so.1")
    except OSError:
        return []
    count = ctypes.c_uint()
    if library.nvmlInit_v2() != _NVML_OK or library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != _NVML_OK:
        return []
    found = []
    for index in range(count.value):
        handle = ctypes.c_void_p()
        if library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) != _NVML_OK:
            continue
        try:
            found.append(NvmlCounter(library, handle))
        except OSError:
            continue
    return found
