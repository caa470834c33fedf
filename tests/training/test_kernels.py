"""Kernels: what this machine cannot run is refused by name; what it can run changes no number that matters."""

import contextlib
import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from tiny_llama import TEXTS, tiny_llama

from configs.training import LoraSettings, TrainingSettings
from tasks.adaptation.lora import train_adapter
from tasks.training import kernels
from tasks.training.checkpoint import load_model
from tasks.training.error import TrainingError
from tasks.training.kernels import check_kernels, with_kernels


@pytest.mark.parametrize("name", ["liger", "unsloth"])
def test_gpu_kernels_are_refused_without_a_gpu_and_without_their_package(
    name: kernels.Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainingError, match=f"kernels: {name} needs a CUDA GPU .* use compile or none"):
        check_kernels(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(kernels, "find_spec", lambda package: None)
    with pytest.raises(TrainingError, match=f"kernels: {name} needs the package {name}"):
        check_kernels(name)
    monkeypatch.setattr(kernels, "find_spec", lambda package: importlib.util.find_spec("torch"))
    check_kernels(name)


@pytest.mark.parametrize("fails", [False, True])
def test_what_liger_replaces_is_put_back(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama import modeling_llama

    def replacing(model: object) -> object:
        monkeypatch.setattr(modeling_llama, "LlamaRMSNorm", torch.nn.Identity, raising=True)
        return model

    own = modeling_llama.LlamaRMSNorm
    monkeypatch.setattr(kernels, "_liger", replacing)
    model = load_model(tiny_llama(tmp_path / "m", layers=1).folder, torch.float32)
    with contextlib.suppress(ZeroDivisionError), with_kernels(model, "liger"):
        assert modeling_llama.LlamaRMSNorm is torch.nn.Identity
        if fails:
            raise ZeroDivisionError
    assert modeling_llama.LlamaRMSNorm is own


def test_compile_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(TrainingError, match="kernels: compile needs a C\\+\\+ compiler"):
        check_kernels("compile")
    monkeypatch.setattr(shutil, "which", lambda program: "/usr/bin/clang++" if program == "clang++" else None)
    check_kernels("compile")
    check_kernels("none")


def test_an_adapter_that_cannot_have_its_kernels_is_not_trained(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    lora = LoraSettings(method="lora", kernels="liger")
    with pytest.raises(TrainingError, match="kernels: liger needs a CUDA GPU"):
        train_adapter(tiny_llama(tmp_path / "m"), TEXTS, lora, TrainingSettings(), tmp_path, tmp_path / "s")


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="no C++ compiler")
def test_compiled_layers_learn_the_same(tmp_path: Path) -> None:
    training = TrainingSettings(
        steps=3, batch_sequences=2, sequence_tokens=32, learning_rate=1e-2, autocast="none"
    )
    tiny = tiny_llama(tmp_path / "m", layers=2)
    losses = {}
    for name in ("none", "compile"):
        out = tmp_path / name
        out.mkdir()
        lora = LoraSettings.model_validate({"method": "lora", "rank": 4, "kernels": name})
        losses[name] = train_adapter(tiny, TEXTS, lora, training, out, tmp_path / f"s-{name}").losses
    assert losses["compile"] == pytest.approx(losses["none"], rel=1e-3)
