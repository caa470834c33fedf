"""What the NVIDIA GPUs of this machine hold and have used, by all processes together, as NVML tells it.

NVML comes with the driver and is asked through ctypes: a process that asks needs no CUDA context, which alone takes hundreds of MiB.
"""

import ctypes
from collections.abc import Callable
from typing import Any

_OK = 0


class _Memory(ctypes.Structure):
    """nvmlMemory_t, bytes."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class Gpu:
    """One device of an initialized NVML."""

    def __init__(self, library: Any, handle: Any) -> None:
        """Use `open_gpus`."""
        self._library, self._handle = library, handle

    def joules(self) -> float:
        """Energy since the driver was loaded; Volta or newer.

        Raises:
            OSError: NVML does not tell.
        """
        millijoules = ctypes.c_ulonglong()
        self._ask("nvmlDeviceGetTotalEnergyConsumption", millijoules, "energy")
        return millijoules.value / 1e3

    def used_bytes(self) -> int:
        """Memory that is taken, by whichever process.

        Raises:
            OSError: NVML does not tell.
        """
        return int(self._memory().used)

    def free_bytes(self) -> int:
        """Memory that is left.

        Raises:
            OSError: NVML does not tell.
        """
        return int(self._memory().free)

    def _memory(self) -> Any:
        memory = _Memory()
        self._ask("nvmlDeviceGetMemoryInfo", memory, "memory")
        return memory

    def _ask(self, function: str, answer: Any, what: str) -> None:
        if getattr(self._library, function)(self._handle, ctypes.byref(answer)) != _OK:
            raise OSError(f"NVML does not tell the {what} of this GPU")


def open_gpus(load: Callable[[str], Any] = ctypes.CDLL) -> list[Gpu]:
    """The GPUs of this machine; none without the driver's library."""
    try:
        library = load("libnvidia-ml.so.1")
    except OSError:
        return []
    count = ctypes.c_uint()
    if library.nvmlInit_v2() != _OK or library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != _OK:
        return []
    found = []
    for index in range(count.value):
        handle = ctypes.c_void_p()
        if library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) == _OK:
            found.append(Gpu(library, handle))
    return found
