import math

import pytest
import torch
import torch.nn.functional as F

from tasks.profiling.training_memory import CHUNK_TOKENS
from tasks.training.losses import cross_entropy, distillation, divergence, mean_loss

# The worked example of the project's seed notes: four logits, T = 2, alpha = 0.4, the first is right.
TEACHER, STUDENT, GOLD, T, ALPHA = [3.2, 2.4, -0.8, 0.1], [2.0, 1.9, -0.1, 0.2], 0, 2.0, 0.4


def by_hand() -> tuple[float, float]:
    """Hard and soft loss of the example, in plain arithmetic."""

    def softmax(logits: list[float], temperature: float) -> list[float]:
        exps = [math.exp(x / temperature) for x in logits]
        return [e / sum(exps) for e in exps]

    hard = -math.log(softmax(STUDENT, 1.0)[GOLD])
    pairs = zip(softmax(TEACHER, T), softmax(STUDENT, T), strict=True)
    return hard, T**2 * sum(p * math.log(p / q) for p, q in pairs)


def test_distillation_loss_is_the_closed_form() -> None:
    hard, soft = by_hand()
    assert (round(hard, 4), round(soft, 4)) == (0.7851, 0.1828)
    student, teacher = torch.tensor([STUDENT]), torch.tensor([TEACHER])

    assert divergence(student, teacher, T).item() == pytest.approx(soft, rel=1e-5)
    identity = torch.eye(4)  # an output head that hands the hidden states on as logits
    loss = mean_loss(student, identity, distillation(torch.tensor([GOLD]), teacher, identity, T, ALPHA))
    assert loss.item() == pytest.approx(ALPHA * hard + (1 - ALPHA) * soft, rel=1e-5)


def test_alpha_one_is_plain_cross_entropy_and_an_equal_student_has_no_soft_loss() -> None:
    student, identity = torch.tensor([STUDENT]), torch.eye(4)
    gold = torch.tensor([GOLD])
    hard_only = mean_loss(student, identity, distillation(gold, torch.tensor([TEACHER]), identity, T, 1.0))
    assert hard_only.item() == pytest.approx(by_hand()[0], rel=1e-5)
    assert mean_loss(
        student, identity, distillation(gold, student, identity, T, 0.0)
    ).item() == pytest.approx(0)


@pytest.mark.parametrize("tokens", [7, CHUNK_TOKENS, 2 * CHUNK_TOKENS + 3])
def test_chunks_give_the_loss_and_gradients_of_the_whole(tokens: int) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, 16, generator=generator, requires_grad=True)
    head = torch.randn(50, 16, generator=generator, requires_grad=True)
    targets = torch.randint(0, 50, (tokens,), generator=generator)

    chunked = mean_loss(hidden, head, cross_entropy(targets))
    got = torch.autograd.grad(3 * chunked, (hidden, head))
    whole = F.cross_entropy(hidden @ head.T, targets)
    expected = torch.autograd.grad(3 * whole, (hidden, head))

    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(got, expected)


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden, head = torch.randn(5, 8, requires_grad=True), torch.randn(20, 8)
    mean_loss(hidden, head, cross_entropy(torch.zeros(5, dtype=torch.long))).backward()
    assert hidden.grad is not None
    assert head.grad is None
