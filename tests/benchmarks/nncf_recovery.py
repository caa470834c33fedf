"""NNCF's own recovery: scales and absorbable adapters trained inside its rounding (compression format FQ_LORA).

The calls are those of its example (`examples/llm_compression/torch/distillation_qat_with_lora`), which wants a GPU, rank 256 and 320
steps of 32 x 1,024 tokens: the loss is the divergence from the source, adapters learn at the rate given, scales at a tenth of it, and
what is exported is NNCF's own decompression subgraph. Schedule, clipping, weight decay (none) and text are those of our recovery.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.training import TrainingSettings
from tasks.training.checkpoint import head_weight, last_hidden, load_model, load_tokenizer
from tasks.training.loop import rate_fraction
from tasks.training.losses import divergence
from tasks.training.packing import pack

RANK = 32
_SAME_NATS = 0.01  # what bfloat16 of the teacher makes


def train_fq_lora(checkpoint: Path, texts: Sequence[str], training: TrainingSettings, out: Path) -> float:
    """Train and write an OpenVINO artifact into `out`.

    Args:
        checkpoint: the source.
        texts: documents.
        training: with `autocast` decided.
        out: an empty folder.

    Returns:
        Seconds of the optimizer steps.

    Raises:
        ValueError: the source is not its own teacher: the two sides do not see the same context.
    """
    import nncf
    from nncf.parameters import CompressionFormat, StripFormat
    from nncf.quantization.advanced_parameters import AdvancedCompressionParameters

    torch.manual_seed(training.seed)  # adapters start at random
    tokenizer = load_tokenizer(checkpoint)
    text = pack(
        texts, tokenizer, training.sequence_tokens, training.steps * training.batch_sequences, training.seed
    )
    teacher = load_model(checkpoint, torch.bfloat16)
    model = load_model(checkpoint, torch.float32)
    with torch.no_grad():
        own = _loss(model, teacher, text.tokens[:2], text.positions[:2], training).item()
    if own > _SAME_NATS:
        raise ValueError(f"the source diverges from itself by {own:.3g} nats: its masks differ")
    tokens_BT = text.tokens[:1, :-1]
    example = {
        "input_ids": tokens_BT,
        "attention_mask": torch.ones_like(tokens_BT),
        "position_ids": text.positions[:1],
    }
    model = nncf.compress_weights(
        model,
        mode=nncf.CompressWeightsMode.INT4_ASYM,
        group_size=64,
        all_layers=False,
        dataset=nncf.Dataset([example]),
        compression_format=CompressionFormat.FQ_LORA,
        advanced_parameters=AdvancedCompressionParameters(lora_adapter_rank=RANK),
    )
    groups = _trainable(model, training.learning_rate)
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate_fraction(step, training.steps, max(1, training.steps // 10))
    )
    began_s = time.perf_counter()
    for step in range(training.steps):
        rows = slice(step * training.batch_sequences, (step + 1) * training.batch_sequences)
        loss = _loss(model, teacher, text.tokens[rows], text.positions[rows], training)
        loss.backward()
        nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            print(f"  step {step}: {loss.item():.4f} nats", flush=True)
    seconds = time.perf_counter() - began_s
    model = nncf.strip(model, do_copy=False, strip_format=StripFormat.DQ, example_input=example)
    _export(model, tokenizer, out)
    return seconds


def _trainable(model: Any, learning_rate: float) -> list[dict[str, Any]]:
    from nncf.torch.function_hook.wrapper import get_hook_storage
    from nncf.torch.quantization.layers import AsymmetricLoraQuantizer

    model.requires_grad_(False)
    adapters, scales = [], []
    for _, module in get_hook_storage(model).named_hooks():
        if isinstance(module, AsymmetricLoraQuantizer) and module.num_bits == 4:
            module.enable_gradients()
            own = module.get_adapters()
            adapters += list(own.values())
            scales += [p for name, p in module.get_trainable_params().items() if name not in own]
    return [{"params": adapters, "lr": learning_rate}, {"params": scales, "lr": learning_rate / 10}]


def _loss(
    model: Any, teacher: Any, tokens_BT: Tensor, positions_BT: Tensor, training: TrainingSettings
) -> Tensor:
    """NNCF's hooks act on the whole model's forward pass only, so that all logits are there at once.

    No mask and no cache: transformers then keeps packed documents apart by their positions, as it does for the teacher.
    """
    inputs_BT = tokens_BT[:, :-1]
    with torch.autocast("cpu", torch.bfloat16, enabled=training.autocast == "bf16"):
        with torch.no_grad():
            hidden_ND = last_hidden(teacher, inputs_BT, positions_BT)
            teacher_NV = (hidden_ND @ head_weight(teacher).T.to(hidden_ND.dtype)).float()
        student_NV = model(input_ids=inputs_BT, position_ids=positions_BT, use_cache=False).logits.flatten(
            0, 1
        )
    return divergence(student_NV.float(), teacher_NV) / len(teacher_NV)


def _export(model: Any, tokenizer: Any, out: Path) -> None:
    import openvino as ov
    from openvino_tokenizers import convert_tokenizer
    from optimum.exporters.openvino import export_from_model
    from optimum.intel import OVConfig

    export_from_model(
        model,
        out,
        task="text-generation-with-past",
        stateful=True,
        ov_config=OVConfig(dtype="fp32"),
        preprocessors=[],
    )
    tokenizer.save_pretrained(out)
    converted = convert_tokenizer(tokenizer, with_detokenizer=True)
    for name, part in zip(("openvino_tokenizer", "openvino_detokenizer"), converted, strict=True):
        ov.save_model(part, out / f"{name}.xml", compress_to_fp16=False)
