"""From raw logits at target positions to scores, and from requests to batches: what scoring engines share."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tasks.engines.protocol import EngineError, ScoreRequest, TokenScores

MIN_SHARED_TOKENS = 8  # a shorter context costs less to feed again than its block of a paged cache to copy
Part = TypeVar("Part")


@dataclass(frozen=True)
class LogitRows:
    """Rows of logits with what normalizes them.

    Attributes:
        logits: raw, shape (R, V).
        top: the greatest of each row, shape (R,).
        total: of each row the log of the summed exponentials of the distances to it, shape (R,): apart from `top`, beside which a
            float32 would lose its digits.
    """

    logits: NDArray[np.float32]
    top: NDArray[np.float32]
    total: NDArray[np.float32]


def score_logits(logits_RV: NDArray[np.float32], targets_N: NDArray[np.int64], *, keep: bool) -> TokenScores:
    """Log-softmax of each row at its target, row by row so that the work stays in the processor's cache.

    Args:
        logits_RV: raw logits, one row a target, shape (N, V).
        targets_N: token ids, shape (N,).
        keep: put a copy of the logits into the result.

    Of equal maxima the first is the argmax, as in numpy, torch and greedy decoding.

    Raises:
        EngineError: the number of rows is wrong, or a logit is not finite.
    """
    if logits_RV.shape[0] != len(targets_N):
        raise EngineError(
            f"the engine returned {logits_RV.shape[0]} rows of logits for {len(targets_N)} targets"
        )
    top, total = np.empty(len(targets_N), np.float32), np.empty(len(targets_N), np.float32)
    shifted = np.empty(logits_RV.shape[1], np.float32)
    for index, logits_V in enumerate(logits_RV):
        top[index] = logits_V.max()
        np.subtract(logits_V, top[index], out=shifted)
        np.exp(shifted, out=shifted)
        total[index] = np.log(shifted.sum(dtype=np.float64))
    return scores_of_rows(LogitRows(logits_RV, top, total), targets_N, np.arange(len(targets_N)), keep=keep)


def scores_of_rows(
    rows: LogitRows, targets_N: NDArray[np.int64], rows_N: NDArray[np.int64], *, keep: bool
) -> TokenScores:
    """Scores from rows whose normalizers are known; see `score_logits`.

    Args:
        rows: of an inference.
        targets_N: token ids, shape (N,).
        rows_N: the row of each target, shape (N,): targets may share one.
        keep: put a copy of the logits into the result.

    Raises:
        EngineError: a logit is not finite.
    """
    found, top = rows.logits[rows_N, targets_N], rows.top[rows_N]
    logprobs = found - top - rows.total[rows_N]
    if not np.isfinite(logprobs).all():
        raise EngineError(
            "the engine returned logits that are not finite; try compute: f32 or another weight format"
        )
    is_argmax = found == top
    for index in np.flatnonzero(is_argmax):  # another token may be as probable and come first
        is_argmax[index] = rows.logits[rows_N[index]].argmax() == targets_N[index]
    return TokenScores(logprobs, is_argmax, np.array(rows.logits[rows_N], np.float32) if keep else None)


def part(scores: TokenScores, begin: int, end: int) -> TokenScores:
    """The scores of targets `begin` to `end`."""
    logits = None if scores.logits is None else scores.logits[begin:end]
    return TokenScores(scores.logprobs[begin:end], scores.is_argmax[begin:end], logits)


def joined(first: TokenScores | None, second: TokenScores | None) -> TokenScores:
    """The scores of one sequence out of two consecutive parts; one of them may be missing."""
    if first is None or second is None:
        if (only := first or second) is None:
            raise EngineError("no scores came back for a sequence")
        return only
    both = None
    if first.logits is not None and second.logits is not None:
        both = np.concatenate([first.logits, second.logits])
    return TokenScores(
        np.concatenate([first.logprobs, second.logprobs]),
        np.concatenate([first.is_argmax, second.is_argmax]),
        both,
    )


def batches_of_groups(
    requests: Iterable[ScoreRequest],
    *,
    batch_tokens: int,
    max_targets: int,
    min_shared: int,
    block_tokens: int = 1,
) -> Iterator[list[list[ScoreRequest]]]:
    """Consecutive requests of one context as groups, in batches of at most `batch_tokens` tokens to feed.

    A context counts once, and every sequence in whole blocks of `block_tokens`. A group stands whole in one batch, so that how it is
    fed does not depend on what stands beside it; one that is larger than a batch is cut. Contexts below `min_shared` tokens are not
    worth sharing, their requests are groups of one.
    """
    groups = _groups(requests, batch_tokens, max_targets, min_shared, block_tokens)
    return _batches(groups, batch_tokens, max_targets)


def _groups(
    requests: Iterable[ScoreRequest],
    batch_tokens: int,
    max_targets: int,
    min_shared: int,
    block_tokens: int,
) -> Iterator[tuple[list[ScoreRequest], int, int]]:
    """Consecutive requests of one context, none larger than a batch; of each its tokens to feed and its targets."""
    group: list[ScoreRequest] = []
    tokens = targets = 0
    for request in _checked(requests):
        more, context = len(request.targets), len(request.context)
        same = group and group[-1].context == request.context and context >= min_shared
        added = _in_blocks(more if same else context + more, block_tokens)
        if group and (not same or tokens + added > batch_tokens or targets + more > max_targets):
            yield group, tokens, targets
            group, tokens, targets = [], 0, 0
            added = _in_blocks(context + more, block_tokens)
        group.append(request)
        tokens, targets = tokens + added, targets + more
    if group:
        yield group, tokens, targets


def _in_blocks(tokens: int, block_tokens: int) -> int:
    return -(-tokens // block_tokens) * block_tokens


def batches_by_tokens(
    requests: Iterable[ScoreRequest], *, batch_tokens: int, max_targets: int | None = None
) -> Iterator[list[ScoreRequest]]:
    """Consecutive requests in batches of at most `batch_tokens` tokens and `max_targets` targets."""
    sized = ((r, len(r.context) + len(r.targets), len(r.targets)) for r in _checked(requests))
    return _batches(sized, batch_tokens, math.inf if max_targets is None else max_targets)


def _checked(requests: Iterable[ScoreRequest]) -> Iterator[ScoreRequest]:
    for request in requests:
        if not request.context or not request.targets:
            raise EngineError("a score request needs at least one context token and one target")
        yield request


def _batches(
    sized: Iterable[tuple[Part, int, int]], batch_tokens: int, max_targets: float
) -> Iterator[list[Part]]:
    """Parts of (part, tokens, targets) in turn, as many as fit; a larger one stands alone."""
    batch: list[Part] = []
    tokens = targets = 0
    for each, more_tokens, more_targets in sized:
        if batch and (tokens + more_tokens > batch_tokens or targets + more_targets > max_targets):
            yield batch
            batch, tokens, targets = [], 0, 0
        batch.append(each)
        tokens, targets = tokens + more_tokens, targets + more_targets
    if batch:
        yield batch
