"""Loading a checkpoint for training, and writing a changed one: safetensors only."""

import shutil
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import Tensor

from tasks.models.checkpoint_folder import SIDE_FILES

TorchDtype = Literal["auto"] | torch.dtype


def load_model(folder: Path, dtype: TorchDtype, **options: Any) -> Any:
    """The causal language model of a checkpoint, on the CPU.

    Args:
        folder: config, safetensors weights, tokenizer.
        dtype: of the weights in memory; "auto" is the checkpoint's own.
        options: passed to `from_pretrained` (a quantization config).
    """
    transformers.utils.logging.disable_progress_bar()
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation="sdpa",
        use_safetensors=True,
        local_files_only=True,
        **options,
    )


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint."""
    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


def config_dtype(folder: Path) -> torch.dtype:
    """The dtype that a checkpoint's config states; float32 where it states none."""
    dtype = transformers.AutoConfig.from_pretrained(folder, local_files_only=True).dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def save_checkpoint(model: Any, source: Path, out: Path) -> None:
    """Write the model's weights and config, and copy the source's tokenizer and generation config."""
    model.config.use_cache = (
        True  # the trainer turned it off, and whoever loads the checkpoint would decode without one
    )
    model.save_pretrained(out)
    for name in SIDE_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)


def last_hidden(model: Any, tokens_BT: Tensor, positions_BT: Tensor) -> Tensor:
    """Hidden states after the last norm, shape (B * T, D): what the output head is applied to.

    Under autocast they come in its dtype, so that the head, a third of a small model's arithmetic, is
    computed in it too.
    """
    body = inner(model).base_model
    hidden_BTD: Tensor = body(
        input_ids=tokens_BT, position_ids=positions_BT, use_cache=False
    ).last_hidden_state
    device = hidden_BTD.device.type
    if torch.is_autocast_enabled(device):
        hidden_BTD = hidden_BTD.to(torch.get_autocast_dtype(device))
    return hidden_BTD.flatten(0, 1)


def head_weight(model: Any) -> Tensor:
    """The output head's weight, shape (V, D); the token embedding where the two are tied."""
    weight: Tensor = inner(model).get_output_embeddings().weight
    return weight


def inner(model: Any) -> Any:
    """The transformers model inside a peft model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
