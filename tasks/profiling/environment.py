"""The machine that a measurement belongs to, as readable text; torch and the engines are not imported."""

import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

import psutil

_SPEED_FLAGS = (
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16",
    "amx_int8", "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_NVIDIA_QUERY_S = 10.0


def environment() -> dict[str, str]:
    """Fingerprint of this machine: processor, instruction sets, cores, memory, accelerator, system, Python.

    Nothing in it changes between two runs on an unchanged machine, so it may be part of a key.
    """
    return dict(_environment())


@cache
def _environment() -> tuple[tuple[str, str], ...]:
    model, flags = _processor()
    return (
        ("cpu", model),
        ("cpu_flags", " ".join(flag for flag in _SPEED_FLAGS if flag in flags) or "none known"),
        ("cores", str(usable_cores())),
        ("memory_gib", f"{memory_limit_bytes() / 2**30:.1f}"),
        ("gpu", _gpu()),
        ("system", f"{platform.system()} {platform.release()} {platform.machine()}"),
        ("python", platform.python_version()),
    )


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_limit_bytes() -> int:
    """Memory this process may use: the machine's, or its control group's limit where that is lower."""
    limits = [int(psutil.virtual_memory().total)]
    for path in _CGROUP_LIMITS:
        text = path.read_text().strip() if path.is_file() else "max"
        if text.isdecimal():
            limits.append(int(text))
    return min(limits)


def _processor() -> tuple[str, frozenset[str]]:
    """Model name and instruction-set flags."""
    info = Path("/proc/cpuinfo")
    fields: dict[str, str] = {}
    if info.is_file():
        for line in info.read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    model = fields.get("model name") or platform.processor() or platform.machine()
    return model, frozenset((fields.get("flags") or fields.get("Features") or "").split())


def _gpu() -> str:
    """What nvidia-smi lists; "none" without it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "none"
    query = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=_NVIDIA_QUERY_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown: nvidia-smi failed ({type(error).__name__})"
    return "; ".join(line.strip() for line in answer.stdout.splitlines() if line.strip()) or "none"
