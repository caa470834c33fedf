"""Hand freed memory back to the operating system."""

import ctypes
import gc
import sys


def return_freed_memory() -> None:
    """Collect garbage, and make glibc return its free pages: it would keep those of a closed model."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none, and needs none
        if trim is not None:
            trim(0)
