"""Out of memory, as the libraries say it: torch and OpenVINO raise a RuntimeError where Python raises MemoryError."""

from collections.abc import Iterator
from contextlib import contextmanager

_SAID = ("can't allocate memory", "not enough memory", "bad_alloc", "Cannot allocate memory")


@contextmanager
def memory_errors() -> Iterator[None]:
    """Whatever says inside that memory ran out is a MemoryError; every other defect stays what it is.

    Raises:
        MemoryError: a native allocator failed.
    """
    try:
        yield
    except (RuntimeError, OSError) as error:
        if any(said in str(error) for said in _SAID):
            raise MemoryError(" ".join(str(error).split())) from error
        raise
