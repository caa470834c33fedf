"""Energy of the machine's processors, where they count it: RAPL for Intel and AMD packages, NVML for NVIDIA GPUs.

RAPL counters are read from Linux's powercap tree (Documentation/power/powercap); they wrap at `max_energy_range_uj`, and since
the PLATYPUS attack (CVE-2020-8694) only root may read them. Virtual machines have none as a rule. What cannot be read is None, never 0.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Self

from tasks.serving.nvml import Gpu, open_gpus

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Adds up what the counters have counted since the meter was made."""

    def __init__(self, counters: list["RaplCounter | GpuCounter"]) -> None:
        """Take the counters; without any the meter knows nothing."""
        self._counters = counters

    @classmethod
    def of_machine(cls, *, gpu: bool) -> Self:
        """The processors' packages, and with `gpu` the NVIDIA GPUs."""
        return cls([*rapl_counters(), *(gpu_counters(open_gpus()) if gpu else [])])

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


class GpuCounter:
    """One GPU, Volta or newer."""

    def __init__(self, gpu: Gpu) -> None:
        """Start counting.

        Raises:
            OSError: it does not tell its energy.
        """
        self._gpu, self._first_j = gpu, gpu.joules()

    def joules(self) -> float:
        """Energy since it was opened."""
        return self._gpu.joules() - self._first_j


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


def gpu_counters(gpus: Iterable[Gpu]) -> list[GpuCounter]:
    """Those that tell their energy."""
    found = []
    for gpu in gpus:
        try:
            found.append(GpuCounter(gpu))
        except OSError:
            continue
    return found
