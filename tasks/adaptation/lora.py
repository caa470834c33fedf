"""Low-rank adapters on the user's text: LoRA, QLoRA and DoRA through peft, and merging them back.

The frozen base is held in bf16 when the training is in bf16: half the memory, and no weight is cast again
in every step (autocast caches casts of trained weights only). The adapter's own matrices stay in float32.
Gradient checkpointing is off unless a limit asks for it (`tasks.training.memory_saving`). The second matrix may learn faster than the
first: it starts at zero, and at one rate for both it is the slower one (LoRA+: Hayou et al. 2024, arXiv:2402.12354).
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.training import LoraSettings, TrainingSettings
from tasks.adaptation.loftq import start_at_repair, take_out_repair
from tasks.models.checkpoint import read_architecture
from tasks.store.artifact import Artifact
from tasks.training.checkpoint import (
    config_dtype,
    head_weight,
    last_hidden,
    load_model,
    load_tokenizer,
    save_checkpoint,
)
from tasks.training.device import training_memory
from tasks.training.error import TrainingError
from tasks.training.kernels import check_kernels, with_kernels
from tasks.training.log import TrainingLog
from tasks.training.loop import train
from tasks.training.losses import cross_entropy, mean_loss
from tasks.training.memory_saving import RECOMPUTED, choose_saving, giving_back, with_saving
from tasks.training.packing import pack, pack_held_out


def train_adapter(
    checkpoint: Artifact,
    texts: Sequence[str],
    lora: LoraSettings,
    training: TrainingSettings,
    out: Path,
    scratch: Path,
    held_out: Sequence[str] = (),
    max_mib: float | None = None,
) -> TrainingLog:
    """Train an adapter on texts and write it (safetensors and `adapter_config.json`).

    Args:
        checkpoint: the base model.
        texts: documents.
        lora: method, rank, scale and targets.
        training: steps, batch, learning rate.
        out: existing empty folder for the adapter.
        scratch: see `tasks.training.loop.train`.
        held_out: documents that are not trained on; the state with the least loss on them is kept.
        max_mib: most that training may add to the process's memory; None: the fastest way.

    Raises:
        TrainingError: too little text, a target that the model lacks, kernels that this machine lacks, a limit that nothing fits into,
            or training diverged.
    """
    import peft

    check_kernels(lora.kernels)
    torch.manual_seed(training.seed)  # the adapter's random half
    tokenizer = load_tokenizer(checkpoint.folder)
    text = pack(
        texts,
        tokenizer,
        training.sequence_tokens,
        training.steps * training.batch_sequences,
        training.seed,
    )
    saving = choose_saving(read_architecture(checkpoint), training, lora, max_mib)
    training = with_saving(training, saving)
    with giving_back(saving), training_memory() as memory:
        model = with_adapter(checkpoint.folder, lora, training)
        repair = start_at_repair(model, checkpoint.folder) if lora.init == "loftq" else {}
        if saving in RECOMPUTED:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        watched = pack_held_out(held_out, tokenizer, training.sequence_tokens)
        with with_kernels(model, lora.kernels) as model:
            log = train(
                model, text, training, _next_token_loss, scratch, memory, watched,
                lambda name: lora.b_rate_ratio if ".lora_B." in name else 1.0,
            )  # fmt: skip
    if repair:
        take_out_repair(model, repair)
    adapter = model.peft_config["default"]
    adapter.base_model_name_or_path = checkpoint.digest  # not the path of this machine
    model.save_pretrained(out, save_embedding_layers=False)  # "auto" would look for the base on the hub
    (out / "README.md").unlink(missing_ok=True)  # peft's model card template
    if not (out / peft.utils.SAFETENSORS_WEIGHTS_NAME).is_file():
        raise TrainingError(f"peft wrote no {peft.utils.SAFETENSORS_WEIGHTS_NAME}")
    shutil.rmtree(scratch, ignore_errors=True)
    return log.model_copy(update={"saving": saving})


def merge_adapter(checkpoint: Artifact, adapter: Path, out: Path) -> None:
    """Add an adapter to the weights it was trained on and write a full checkpoint in the checkpoint's dtype.

    A QLoRA adapter is merged into the full-precision weights, not into their NF4 rounding. The sum is taken
    in float32.

    Args:
        checkpoint: the base model.
        adapter: folder that `train_adapter` wrote.
        out: existing empty folder.
    """
    import peft

    own_dtype = config_dtype(checkpoint.folder)
    model = peft.PeftModel.from_pretrained(load_model(checkpoint.folder, torch.float32), adapter)
    save_checkpoint(model.merge_and_unload().to(own_dtype), checkpoint.folder, out)


def with_adapter(folder: Path, lora: LoraSettings, training: TrainingSettings) -> Any:
    """A checkpoint with an untrained adapter: the model of peft that `train_adapter` trains.

    Raises:
        TrainingError: a target that the model lacks.
    """
    import peft

    dtype = torch.bfloat16 if training.autocast == "bf16" else torch.float32
    model = load_model(
        folder, dtype, **({"quantization_config": _nf4(dtype)} if lora.method == "qlora" else {})
    )
    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        use_rslora=lora.rank_stabilized,
        target_modules=_targets(model, lora),
        use_dora=lora.method == "dora",
        task_type=peft.TaskType.CAUSAL_LM,
    )
    return peft.get_peft_model(model, settings)


def _targets(model: Any, lora: LoraSettings) -> list[str]:
    """Whole names of the linear layers that get an adapter."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    kinds = sorted({name.rsplit(".", 1)[-1] for name in linear})
    wanted = [name for name in linear if lora.adapts(name)]
    if isinstance(lora.target_modules, str):
        if not wanted:
            raise TrainingError(
                f"target_modules {lora.target_modules!r} matches no linear layer; whole names are like {linear[0]!r}, the kinds "
                f"{kinds}"
            )
    elif missing := sorted(set(lora.target_modules) - set(kinds)):
        raise TrainingError(f"target_modules names {missing}; the linear layers of this model are {kinds}")
    if any(model.get_submodule(name) is model.get_output_embeddings() for name in wanted):
        raise TrainingError(
            "target_modules names lm_head: its loss is computed in chunks, without an adapter; leave it out"
        )
    return wanted


def _nf4(compute: torch.dtype) -> Any:
    """NF4 with double quantization (Dettmers et al. 2023, arXiv:2305.14314)."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def _next_token_loss(model: nn.Module, tokens_BT: Tensor, positions_BT: Tensor) -> Tensor:
    hidden_ND = last_hidden(model, tokens_BT[:, :-1], positions_BT)
    return mean_loss(hidden_ND, head_weight(model), cross_entropy(tokens_BT[:, 1:].flatten()))
