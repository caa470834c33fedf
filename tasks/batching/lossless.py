"""Whether speculation says what plain greedy decoding says, token by token, and which differences are numerical ties.

A pass over block + 1 tokens rounds otherwise than passes over one: where two tokens are all but equally probable, the first may change
place with the second without any token having been accepted wrongly. The rule:

1. The outputs of a request are compared up to their first difference. What follows it has another context and is not compared.
2. There, the plain engine's own scoring gives the distance of the two tokens, in nats, fed one token at a time as plain decoding is.
3. The tolerance is the largest change that feeding alone made to the distance of the two most probable tokens: the same outputs are
   scored one token at a time in the engine's own batches, and in pieces of block + 1 tokens, as a checking pass feeds them, in batches
   of five. It is taken over all tokens of the requests that differ, and of others until there are eight, and is never above a limit.
4. A distance within the tolerance is a tie; any other difference, an output that ends early too, means: not lossless.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.engines.protocol import Engine, EngineError, Generation, GenerationRequest, ScoreRequest
from tasks.store.record import Record

OTHER_BATCH = 5  # requests of a batch the second time
LEAST_REQUESTS = 8  # behind a tolerance, where there are so many

OpenScorer = Callable[[int], AbstractContextManager[Engine]]
"""Opens the plain engine so that it scores in pieces of so many tokens."""


class Losslessness(Record):
    """What became of every request.

    Attributes:
        identical: all tokens are the plain ones.
        tied: the first difference is a tie.
        different: it is none.
        tolerance_nats: what a tie is, by step 3 of the rule; 0 where nothing differed.
        largest_gap_nats: the largest distance at a first difference; 0 where nothing differed.
        positions: tokens behind the tolerance.
    """

    identical: int
    tied: int
    different: int
    tolerance_nats: float = 0.0
    largest_gap_nats: float = 0.0
    positions: int = 0

    @property
    def lossless(self) -> bool:
        """Whether no request differs beyond a tie."""
        return self.different == 0


@dataclass(frozen=True)
class _Scored:
    """The two most probable tokens at each position, shape (T, 2), how far one leads, and the distance asked for."""

    pairs_T2: NDArray[np.int64]
    leads_T: NDArray[np.float64]
    gap: float


def first_difference(plain: Generation, other: Generation) -> int | None:
    """Position of the first token that differs, or at which one of the two has ended; None where there is none."""
    for position, (ours, theirs) in enumerate(zip(plain.tokens, other.tokens, strict=False)):
        if ours != theirs:
            return position
    shorter = min(len(plain.tokens), len(other.tokens))
    return None if len(plain.tokens) == len(other.tokens) else shorter


def check_lossless(
    requests: Sequence[GenerationRequest],
    plain: Sequence[Generation],
    speculative: Sequence[Generation],
    open_scorer: OpenScorer,
    *,
    block: int,
    max_tie_nats: float,
) -> Losslessness:
    """Compare two runs of the same requests on the same artifact by the rule above.

    Args:
        requests: what was asked.
        plain: made without speculation.
        speculative: made with it.
        open_scorer: not called where all tokens are equal.
        block: drafted tokens a round.
        max_tie_nats: no tolerance is above it.

    Raises:
        EngineError: the engine failed, or gave no logits.
    """
    found = [first_difference(*pair) for pair in zip(plain, speculative, strict=True)]
    differing = [i for i, position in enumerate(found) if position is not None]
    if not differing:
        return Losslessness(identical=len(requests), tied=0, different=0)
    equal = [i for i, position in enumerate(found) if position is None]
    chosen = [*differing, *equal[: max(0, LEAST_REQUESTS - len(differing))]]
    asked = [ScoreRequest(requests[i].prompt, plain[i].tokens) for i in chosen]
    places = [_place(found[i], plain[i], speculative[i]) for i in chosen]
    with open_scorer(1) as engine:
        scored = _as_decoded(engine, asked, places)
    with open_scorer(block + 1) as engine:
        changes = _changes(engine, asked, scored)
    tolerance = min(max(changes), max_tie_nats)
    gaps = [each.gap for each in scored[: len(differing)]]
    tied = sum(gap <= tolerance for gap in gaps)
    comparable = [gap for gap in gaps if np.isfinite(gap)]
    return Losslessness(
        identical=len(equal),
        tied=tied,
        different=len(differing) - tied,
        tolerance_nats=tolerance,
        largest_gap_nats=max(comparable, default=0.0),
        positions=sum(len(each.leads_T) for each in scored),
    )


def _place(position: int | None, plain: Generation, other: Generation) -> tuple[int, int, int] | None:
    """(position, plain token, other token) of a difference; None where there are no two tokens to hold side by side."""
    if position is None or position >= min(len(plain.tokens), len(other.tokens)):
        return None
    return position, plain.tokens[position], other.tokens[position]


def _as_decoded(
    engine: Engine, asked: Sequence[ScoreRequest], places: Sequence[tuple[int, int, int] | None]
) -> list[_Scored]:
    """Every token's lead, and the distance at each place; without a place it is infinite: a difference that is no tie."""
    scored = []
    for place, scores in zip(places, engine.score(asked, with_logits=True), strict=True):
        logits_TV = _logits(scores.logits)
        pairs_T2 = np.argpartition(logits_TV, -2, axis=1)[:, -2:].astype(np.int64)
        gap = float("inf")
        if place is not None:
            position, ours, theirs = place
            gap = abs(float(logits_TV[position, ours]) - float(logits_TV[position, theirs]))
        scored.append(_Scored(pairs_T2, _leads(logits_TV, pairs_T2), gap))
    return scored


def _changes(engine: Engine, asked: Sequence[ScoreRequest], scored: Sequence[_Scored]) -> list[float]:
    """The largest change of a lead in each request, scored as a checking pass feeds tokens."""
    changes = []
    for begin in range(0, len(asked), OTHER_BATCH):
        few, before = asked[begin : begin + OTHER_BATCH], scored[begin : begin + OTHER_BATCH]
        for known, scores in zip(before, engine.score(few, with_logits=True), strict=True):
            after_T = _leads(_logits(scores.logits), known.pairs_T2)
            changes.append(float(np.abs(after_T - known.leads_T).max()))
    return changes


def _leads(logits_TV: NDArray[np.float32], pairs_T2: NDArray[np.int64]) -> NDArray[np.float64]:
    chosen_T2 = np.take_along_axis(logits_TV, pairs_T2, axis=1).astype(np.float64)
    leads_T: NDArray[np.float64] = chosen_T2[:, 0] - chosen_T2[:, 1]
    return leads_T


def _logits(logits: NDArray[np.float32] | None) -> NDArray[np.float32]:
    if logits is None:
        raise EngineError("the engine gave no logits where they were asked for")
    return logits
