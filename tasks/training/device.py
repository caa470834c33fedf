"""What trains: the NVIDIA GPU that this process sees, or the processor; and the peak of its memory."""

from typing import Literal

import torch

from tasks.engines.freed_memory import return_freed_memory
from tasks.serving.memory_peak import MemoryPeak


def training_device() -> Literal["cuda", "cpu"]:
    """The device that transformers' `Trainer` takes, too."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def training_memory() -> MemoryPeak:
    """To be entered before the model is loaded: the peak of what trains.

    On a GPU this process's CUDA context is made first, and what torch keeps for later is given back: neither is the training's.
    """
    gpu = training_device() == "cuda"
    if gpu:
        torch.zeros(1, device="cuda")
        return_freed_memory()
        torch.cuda.empty_cache()
    return MemoryPeak(gpu=gpu)
