"""Scratch folders: where everything is written before it is moved to its place in one step.

A scratch folder is alive as long as its creator holds an flock on it. The kernel drops the lock with the
process, however it dies: a folder that can be locked has no owner. No pid that could be reused, no clock, and
it works across containers that share the disk. Creating and sweeping exclude each other through a lock on the
parent folder.
"""

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, *, blocking: bool = True, shared: bool = False) -> Iterator[None]:
    """Hold a lock on a file (created when absent) or an existing folder, against threads too; exclusive unless `shared`.

    Raises:
        BlockingIOError: another holds it and `blocking` is false.
    """
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(descriptor, kind | (0 if blocking else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Force a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(parent: Path) -> int:
    """Remove the scratch folders of dead processes; returns how many."""
    swept = 0
    with locked(parent):
        for folder in parent.iterdir():
            try:
                with locked(folder, blocking=False):
                    shutil.rmtree(folder)
                    swept += 1
            except BlockingIOError:
                continue  # its process is at work
    return swept


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A new folder, removed at the end unless it was moved away; a killed process leaves it for `sweep`."""
    folder = parent / uuid.uuid4().hex
    with locked(parent):
        folder.mkdir()
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)
