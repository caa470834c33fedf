"""Which process writes a run, so that the runs of dead ones are told from those of living ones."""

import os
import platform
import uuid

import psutil


def this_process() -> str:
    """Machine, pid and start time: a pid alone is reused, and means nothing on another machine."""
    return f"{_machine()} {os.getpid()} {psutil.Process().create_time():.2f}"


def is_dead(process: str) -> bool:
    """Whether a process of this machine has ended; False when it ran elsewhere, out of sight."""
    machine, pid, started = process.rsplit(" ", 2)
    if machine != _machine():
        return False
    try:
        return abs(psutil.Process(int(pid)).create_time() - float(started)) > 1.0
    except psutil.NoSuchProcess:
        return True


def _machine() -> str:
    return f"{platform.node()}/{uuid.getnode():012x}"
