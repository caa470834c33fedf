"""From raw logits at target positions to scores, and from requests to batches: what scoring engines share."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from tasks.engines.protocol import EngineError, ScoreRequest, TokenScores


def score_logits(logits_NV: NDArray[np.float32], targets_N: NDArray[np.int64], *, keep: bool) -> TokenScores:
    """Log-softmax of each row at its target, row by row so that the work stays in the processor's cache.

    Args:
        logits_NV: raw logits, shape (N, V).
        targets_N: the target of each row, shape (N,).
        keep: put a copy of the logits into the result.

    Of equal maxima the first is the argmax, as in numpy, torch and greedy decoding.

    Raises:
        EngineError: the number of rows is wrong, or a logit is not finite.
    """
    if logits_NV.shape[0] != len(targets_N):
        raise EngineError(
            f"the engine returned {logits_NV.shape[0]} rows of logits for {len(targets_N)} targets"
        )
    logprobs = np.empty(len(targets_N), np.float32)
    is_argmax = np.empty(len(targets_N), np.bool_)
    shifted = np.empty(logits_NV.shape[1], np.float32)
    for row, target in enumerate(targets_N):
        logits_V = logits_NV[row]
        top = int(logits_V.argmax())
        np.subtract(logits_V, logits_V[top], out=shifted)
        of_target = shifted[target]
        np.exp(shifted, out=shifted)
        logprobs[row] = of_target - np.log(shifted.sum(dtype=np.float64))
        is_argmax[row] = top == target
    if not np.isfinite(logprobs).all():
        raise EngineError(
            "the engine returned logits that are not finite; try compute: f32 or another weight format"
        )
    return TokenScores(logprobs, is_argmax, np.array(logits_NV, np.float32) if keep else None)


def batches_by_tokens(
    requests: Iterable[ScoreRequest], *, batch_tokens: int, max_targets: int | None = None
) -> Iterator[list[ScoreRequest]]:
    """Consecutive requests in batches of at most `batch_tokens` tokens and `max_targets` targets."""
    batch: list[ScoreRequest] = []
    tokens = targets = 0
    for request in requests:
        if not request.context or not request.targets:
            raise EngineError("a score request needs at least one context token and one target")
        more, more_targets = len(request.context) + len(request.targets), len(request.targets)
        full = tokens + more > batch_tokens or (
            max_targets is not None and targets + more_targets > max_targets
        )
        if batch and full:
            yield batch
            batch, tokens, targets = [], 0, 0
        batch.append(request)
        tokens, targets = tokens + more, targets + more_targets
    if batch:
        yield batch
