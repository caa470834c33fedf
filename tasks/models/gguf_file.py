"""A GGUF file as a float32 safetensors checkpoint.

The weights are transformers' own dequantization (`load_gguf_checkpoint`), but the model is only laid out on
the meta device, for its names and shapes: nothing is initialized, loaded and copied again, and a tensor that
the file lacks is an error instead of random numbers with a warning.
"""

import errno
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.models.errors import ModelSourceError
from tasks.models.gguf_tokenizer import special_tokens, write_tokenizer

if TYPE_CHECKING:
    from gguf import GGUFReader

LIBRARIES = ("transformers", "gguf", "tokenizers", "safetensors")


def read_gguf(path: Path) -> "GGUFReader":
    """Open a GGUF file and check that all of it is there.

    Raises:
        ModelSourceError: absent, truncated or no GGUF file.
    """
    from gguf import GGUFReader

    if not path.is_file():
        raise ModelSourceError(f"{path}: no such file; model.source.path must name a .gguf file")
    try:
        return GGUFReader(path)  # maps every tensor, so a short file shows here
    except (ValueError, LookupError, OverflowError, MemoryError) as error:
        raise ModelSourceError(f"{path}: not a whole GGUF file ({error}); fetch the file again") from error


def _dequantize(path: Path) -> tuple[dict[str, Any], Any]:
    """The float32 tensors of a GGUF file by transformers' names, and the model's configuration."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    try:
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        tensors = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
    except (ValueError, NotImplementedError, KeyError) as error:
        raise ModelSourceError(
            f"{path}: transformers cannot convert this GGUF model ({error}); "
            "use its safetensors form (kind: hub or folder)"
        ) from error
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for name, shape in wanted.items():
        found = tuple(tensors[name].shape) if name in tensors else "none"
        if found != shape:
            raise ModelSourceError(
                f"{path}: tensor {name}: expected shape {shape}, found {found}; fetch the file again"
            )
        if not bool(torch.isfinite(tensors[name]).all()):
            raise ModelSourceError(f"{path}: tensor {name} holds NaN or infinity; fetch the file again")
    config.architectures = [type(model).__name__]
    config.dtype = "float32"
    return {name: tensors[name].float().contiguous() for name in wanted}, config


def convert_gguf(path: Path, folder: Path) -> None:
    """Write a GGUF model as a checkpoint: config, generation config, tokenizer, float32 safetensors.

    Raises:
        ModelSourceError: the file is not whole, or cannot be converted.
        OSError: the disk is too small (known before the weights are written).
    """
    from huggingface_hub import save_torch_state_dict
    from transformers import GenerationConfig

    reader = read_gguf(path)
    tensors, config = _dequantize(path)
    ids = {f"{name}_token_id": index for name, index in special_tokens(reader).items()}
    config.update(ids)
    write_tokenizer(reader, folder, context_tokens=config.max_position_embeddings)
    size_bytes = sum(tensor.nbytes for tensor in tensors.values())
    if shutil.disk_usage(folder).free < size_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
    save_torch_state_dict(tensors, folder, metadata={"format": "pt"}, max_shard_size="4GB")
    config.save_pretrained(folder)
    GenerationConfig(
        **{name: index for name, index in ids.items() if not name.startswith("unk")}
    ).save_pretrained(folder)
