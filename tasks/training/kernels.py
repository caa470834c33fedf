"""Faster kernels for training, each refused where this machine cannot run it."""

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Literal

import torch

from tasks.training.error import TrainingError

Kernels = Literal["none", "compile", "liger", "unsloth"]
_COMPILERS = ("g++", "clang++", "c++")


def check_kernels(kernels: Kernels) -> None:
    """Raise TrainingError, saying what is missing, where `kernels` cannot run here."""
    if kernels in ("liger", "unsloth"):
        package = {"liger": "liger_kernel", "unsloth": "unsloth"}[kernels]
        if not torch.cuda.is_available():
            raise TrainingError(
                f"kernels: {kernels} needs a CUDA GPU (its kernels are written in Triton), and there is none; use compile or none"
            )
        if find_spec(package) is None:
            raise TrainingError(
                f"kernels: {kernels} needs the package {package.replace('_', '-')}, which is not installed; install it, or use "
                "compile or none"
            )
    if kernels == "compile" and not torch.cuda.is_available() and not any(map(shutil.which, _COMPILERS)):
        raise TrainingError(
            f"kernels: compile needs a C++ compiler on the CPU ({' or '.join(_COMPILERS)}), and there is none; install one, or "
            "use none"
        )


@contextmanager
def with_kernels(model: Any, kernels: Kernels) -> Iterator[Any]:
    """The model with its layers on the kernels asked for; to be used inside only.

    Liger replaces classes and functions of the module that defines the model, for every model of the process: afterwards they are what
    they were, or a later model on the processor would be made of layers that only a GPU can run. Unsloth's patches stay.

    Args:
        model: a causal language model of transformers, adapters added.
        kernels: that `check_kernels` let pass.
    """
    apply: Callable[[Any], Any] = {"none": _none, "compile": _compile, "liger": _liger, "unsloth": _unsloth}[
        kernels
    ]
    modeling = sys.modules[type(_base(model)).__module__]
    before = dict(vars(modeling))
    try:
        yield apply(model)
    finally:
        if kernels == "liger":
            vars(modeling).update(before)


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _none(model: Any) -> Any:
    return model


def _compile(model: Any) -> Any:
    """Each decoder layer for itself: alike, they share one compilation, which takes seconds, not minutes."""
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    for layer in max(lists, key=len):
        if layer._compiled_call_impl is None:  # not compiled by an earlier training
            layer.compile(dynamic=False)
    return model


def _liger(model: Any) -> Any:
    """Liger's norms, rotary embedding and gated MLP (Hsu et al. 2024, arXiv:2410.10989); our loss is chunked already."""
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    _apply_liger_kernel_to_instance(model=_base(model), fused_linear_cross_entropy=False, cross_entropy=False)
    return model


def _unsloth(model: Any) -> Any:
    """Unsloth's patches of the adapter's and the layers' forward passes."""
    from unsloth import FastLanguageModel

    return FastLanguageModel.patch_peft_model(model, use_gradient_checkpointing=False)
