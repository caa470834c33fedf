"""Peak memory of this process and its children, as growth since a starting point: resident memory, or, where a GPU computes, its own.

A thread samples the resident size (`/proc/self/statm` behind psutil: microseconds, no page-table walk, so
that measuring speed at the same time is not disturbed). Where Linux lets a process reset its own high-water
mark, the kernel's exact peak is taken too, because a native call that holds the interpreter lock can hide a
short peak from the thread. A GPU's memory is what NVML says of all GPUs and processes: let nothing else use them meanwhile.
"""

import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tasks.engines.freed_memory import return_freed_memory
from tasks.serving.nvml import open_gpus

_INTERVAL_S = 0.1
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


class MemoryPeak:
    """Context manager around loading and measuring one engine.

    Enter it after the engine's library is imported: the code of the library is not the candidate's.
    `growth_bytes` can be read at any time and stays after the end.
    """

    def __init__(self, *, gpu: bool = False) -> None:
        """With `gpu`: of the GPUs' memory. The CUDA context of this process should be there before, like the engine's library."""
        self._gpus = open_gpus() if gpu else None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="memory-peak", daemon=True)
        self._start_bytes = 0
        self._peak_bytes = 0
        self._mark_is_ours = False

    def __enter__(self) -> Self:
        return_freed_memory()  # or a new engine would fill freed pages without growing anything
        self._mark_is_ours = self._gpus is None and _reset_high_water_mark()
        self._start_bytes = self._peak_bytes = self._held_bytes()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    @property
    def growth_bytes(self) -> int:
        """Largest growth from the start until now, or until the end.

        Raises:
            OSError: a GPU's memory was to be measured and NVML lists no GPU.
        """
        if self._gpus == []:
            raise OSError(
                "the memory of the GPU cannot be measured: NVML (libnvidia-ml.so.1, of the driver) lists none"
            )
        if not self._stop.is_set():
            self._look()
        return self._peak_bytes - self._start_bytes

    def _sample(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            self._look()

    def _look(self) -> None:
        mark = _high_water_mark_bytes() if self._mark_is_ours else 0
        self._peak_bytes = max(self._peak_bytes, self._held_bytes(), mark)

    def _held_bytes(self) -> int:
        if self._gpus is None:
            return _resident_bytes()
        return sum(gpu.used_bytes() for gpu in self._gpus)


def _resident_bytes() -> int:
    """Resident memory of this process and its descendants.

    A child younger than a look does not count: between vfork and exec it lives in its parent's address space.
    """
    process = psutil.Process()
    total = int(process.memory_info().rss)
    command = process.cmdline()
    for child in process.children(recursive=True):
        try:
            if time.time() - child.create_time() > _INTERVAL_S:
                total += _own_bytes(child, command)
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # it ended between the listing and the reading
            continue
    return total


def _own_bytes(child: psutil.Process, command: list[str]) -> int:
    """Resident memory of a child; of a forked one, which shows its parent's pages as resident, the private part."""
    forked = child.cmdline() == command
    return int(child.memory_full_info().uss if forked else child.memory_info().rss)


def _reset_high_water_mark() -> bool:
    """Set VmHWM to the present resident size (proc(5), clear_refs); False where that is not allowed."""
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return _STATUS.exists()


def _high_water_mark_bytes() -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
