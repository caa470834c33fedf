"""Losses over a large vocabulary, computed and differentiated in chunks of tokens.

With 49,152 words the float32 logits of 4 x 256 tokens are 192 MiB, and a plain loss holds them four times
(logits, log-softmax, their gradients; twice that with a teacher). Here the output head, the loss and its
gradient are computed chunk by chunk in the forward pass, so only one chunk of logits exists at a time and
nothing is computed twice (the idea of Liger's fused linear cross-entropy, Hsu et al. 2024,
arXiv:2410.10989).

Shapes: N tokens, D hidden size, V vocabulary, C tokens of a chunk.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.profiling.training_memory import CHUNK_TOKENS

ChunkLoss = Callable[[Tensor, slice], Tensor]


def cross_entropy(targets_N: Tensor) -> ChunkLoss:
    """Sum of the negative log-likelihoods of a chunk's targets, nats."""
    return lambda logits_CV, rows: F.cross_entropy(logits_CV, targets_N[rows], reduction="sum")


def divergence(student_CV: Tensor, teacher_CV: Tensor, temperature: float = 1.0) -> Tensor:
    """Sum over tokens of KL(teacher || student), both softened by the temperature T, times T^2, nats.

    T^2 keeps the gradient's size when T changes (Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2).
    """
    student = F.log_softmax(student_CV / temperature, dim=-1)
    teacher = F.log_softmax(teacher_CV / temperature, dim=-1)
    return temperature**2 * F.kl_div(student, teacher, reduction="sum", log_target=True)


def distillation(
    targets_N: Tensor, teacher_ND: Tensor, teacher_head_VD: Tensor, temperature: float, alpha: float
) -> ChunkLoss:
    """Sum of alpha * cross-entropy + (1 - alpha) * T^2 * KL(teacher_T || student_T).

    The teacher is given by its last hidden states and its output head: its logits too exist for one chunk
    only.
    """

    def chunk_loss(logits_CV: Tensor, rows: slice) -> Tensor:
        with torch.no_grad():
            teacher_CV = F.linear(teacher_ND[rows], teacher_head_VD).float()
        soft = divergence(logits_CV, teacher_CV, temperature)
        if alpha == 0:
            return soft
        return alpha * F.cross_entropy(logits_CV, targets_N[rows], reduction="sum") + (1 - alpha) * soft

    return chunk_loss


def mean_loss(hidden_ND: Tensor, head_VD: Tensor, chunk_loss: ChunkLoss) -> Tensor:
    """The mean over tokens of a loss of the logits `hidden @ head.T`, without ever holding them all.

    Args:
        hidden_ND: last hidden states, in the precision that the head is to be computed in.
        head_VD: weight of the output head; receives a gradient if it wants one.
        chunk_loss: the summed loss of one chunk from its float32 logits (C, V) and its rows.
    """
    loss: Tensor = _ChunkedHead.apply(hidden_ND, head_VD, chunk_loss)
    return loss / hidden_ND.shape[0]


class _ChunkedHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, head_VD: Tensor, chunk_loss: ChunkLoss) -> Tensor:
        wants_head = head_VD.requires_grad
        weight_VD = head_VD.detach().to(hidden_ND.dtype)
        grad_ND = torch.empty_like(hidden_ND)
        grad_VD = torch.zeros_like(head_VD) if wants_head else None
        total = torch.zeros((), device=hidden_ND.device)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            for start in range(0, hidden_ND.shape[0], CHUNK_TOKENS):
                rows = slice(start, start + CHUNK_TOKENS)
                logits_CV = F.linear(hidden_ND[rows], weight_VD).float().requires_grad_()
                with torch.enable_grad():
                    loss = chunk_loss(logits_CV, rows)
                slope_CV = torch.autograd.grad(loss, logits_CV)[0].to(hidden_ND.dtype)
                grad_ND[rows] = slope_CV @ weight_VD
                if grad_VD is not None:
                    grad_VD += slope_CV.T @ hidden_ND[rows]
                total += loss.detach()
        ctx.save_for_backward(grad_ND, grad_VD)
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        grad_ND, grad_VD = ctx.saved_tensors
        return grad_ND * scale, None if grad_VD is None else grad_VD.mul_(scale), None
