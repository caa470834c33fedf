"""What Microsoft's ONNX tools do to the process that calls them, contained."""

import contextlib
import io
import logging
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def contained_console() -> Iterator[io.StringIO]:
    """Contain prints, progress bars, advice given to the root logger, its handlers and level, and `sys.path`.

    Yields:
        What was printed so far.
    """
    console = io.StringIO()
    root, path = logging.getLogger(), list(sys.path)
    level, handlers = root.level, list(root.handlers)
    root.addFilter(_not_to_root)
    try:
        with contextlib.redirect_stdout(console), contextlib.redirect_stderr(console):
            root.addHandler(logging.NullHandler())  # logging.basicConfig does nothing where a handler is
            yield console
    finally:
        root.removeFilter(_not_to_root)
        sys.path[:] = path
        root.handlers[:] = handlers
        root.setLevel(level)


def _not_to_root(record: logging.LogRecord) -> bool:
    return record.name != "root"
