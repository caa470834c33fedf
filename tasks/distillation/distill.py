"""Training a student from its teacher's distribution.

loss = alpha * CE + (1 - alpha) * T^2 * KL(teacher_T || student_T)   (Hinton, Vinyals and Dean 2015,
arXiv:1503.02531)

The student keeps float32 weights for AdamW and computes in bf16; the teacher is held in bf16. Both logits
exist for one chunk of tokens at a time (`tasks.training.losses`).
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.training import DistillSettings
from tasks.store.artifact import Artifact
from tasks.training.checkpoint import (
    config_dtype,
    head_weight,
    last_hidden,
    load_model,
    load_tokenizer,
    save_checkpoint,
)
from tasks.training.device import training_device, training_memory
from tasks.training.log import TrainingLog
from tasks.training.loop import train
from tasks.training.losses import distillation, mean_loss
from tasks.training.packing import pack


def distill(
    teacher: Artifact,
    student_start: Artifact,
    texts: Sequence[str],
    settings: DistillSettings,
    out: Path,
    scratch: Path,
) -> TrainingLog:
    """Train all blocks of the student and write it in the dtype of its start.

    The token embedding (tied to the output head here) stays the teacher's: it is a quarter of the student's
    parameters, a few steps move it only where the training text has words, and freezing it saves its
    gradient and two moments.

    Args:
        teacher: the source checkpoint.
        student_start: the pruned checkpoint, with the teacher's tokenizer.
        texts: documents.
        settings: temperature, alpha, training.
        out: existing empty folder for the student.
        scratch: see `tasks.training.loop.train`.

    Raises:
        TrainingError: too little text, or training diverged.
    """
    training = settings.training
    torch.manual_seed(training.seed)
    text = pack(
        texts,
        load_tokenizer(teacher.folder),
        training.sequence_tokens,
        training.steps * training.batch_sequences,
        training.seed,
    )
    with training_memory() as memory:
        teacher_model = load_model(
            teacher.folder, torch.bfloat16 if training.autocast == "bf16" else torch.float32
        ).to(training_device())
        student = load_model(student_start.folder, torch.float32)
        student.get_input_embeddings().requires_grad_(False)
        student.get_output_embeddings().requires_grad_(False)
        log = train(student, text, training, _distillation_loss(teacher_model, settings), scratch, memory)
    save_checkpoint(student.to(config_dtype(student_start.folder)), student_start.folder, out)
    shutil.rmtree(scratch, ignore_errors=True)
    return log


def _distillation_loss(teacher: Any, settings: DistillSettings) -> Any:
    teacher.requires_grad_(False).eval()

    def loss(student: nn.Module, tokens_BT: Tensor, positions_BT: Tensor) -> Tensor:
        inputs_BT, targets_N = tokens_BT[:, :-1], tokens_BT[:, 1:].flatten()
        with torch.no_grad():
            teacher_ND = last_hidden(teacher, inputs_BT, positions_BT)
        chunk_loss = distillation(
            targets_N,
            teacher_ND,
            head_weight(teacher).to(teacher_ND.dtype),
            settings.temperature,
            settings.alpha,
        )
        return mean_loss(last_hidden(student, inputs_BT, positions_BT), head_weight(student), chunk_loss)

    return loss
