"""How well batching fills the slots of a decoder: the model, in decoding steps, without an engine.

One step advances every occupied slot by one token. A static batch holds its slots until its longest request
is done; a continuous one hands a slot to the next request as soon as it is free (Orca, Yu et al., OSDI 2022),
which is list scheduling in order of arrival. Both count time in steps and say nothing of how long a step
takes: a step with few occupied slots is quicker on most machines, so the measured gain is smaller than the
    one predicted here.
"""

import heapq
from collections.abc import Sequence

from tasks.store.record import Record


class Utilization(Record):
    """Slots over time.

    Attributes:
        steps: decoding steps until every request is done.
        tokens: new tokens of all requests.
        slots: requests that fit side by side.
        utilization: tokens / (steps * slots), at most 1.
        finish_steps: the step after which each request is done, in the order of the requests.
    """

    steps: int
    tokens: int
    slots: int
    utilization: float
    finish_steps: tuple[int, ...]


def static_utilization(
    new_tokens: Sequence[int], slots: int, prefill_steps: Sequence[int] | None = None
) -> Utilization:
    """Groups of `slots` requests; a group starts when the one before it is done.

    Args:
        new_tokens: new tokens of each request, at least 1, in order of arrival.
        slots: requests that fit side by side.
        prefill_steps: steps for which each request holds its slot before its first token comes (its prompt in
            chunks); None: prompts cost nothing.

    Raises:
        ValueError: a length below 1, no slots, no requests or lists of different lengths.
    """
    held = _held_steps(new_tokens, slots, prefill_steps)
    start, finish = 0, list[int]()
    for first in range(0, len(held), slots):
        group = held[first : first + slots]
        finish += [start + steps for steps in group]
        start += max(group)
    return _utilization(new_tokens, slots, finish)


def continuous_utilization(
    new_tokens: Sequence[int], slots: int, prefill_steps: Sequence[int] | None = None
) -> Utilization:
    """Each request takes the first slot that is free. Arguments and errors as for `static_utilization`."""
    held = _held_steps(new_tokens, slots, prefill_steps)
    free_at = [0] * slots
    finish = list[int]()
    for steps in held:
        end = free_at[0] + steps
        heapq.heapreplace(free_at, end)
        finish.append(end)
    return _utilization(new_tokens, slots, finish)


def _held_steps(new_tokens: Sequence[int], slots: int, prefill_steps: Sequence[int] | None) -> list[int]:
    """Steps for which each request holds a slot."""
    if slots < 1:
        raise ValueError(f"slots is {slots}; at least 1 request must fit")
    if not new_tokens or min(new_tokens) < 1:
        raise ValueError(
            f"new_tokens is {list(new_tokens)}; give at least one request of at least 1 new token"
        )
    prefill = [0] * len(new_tokens) if prefill_steps is None else prefill_steps
    if len(prefill) != len(new_tokens) or min(prefill) < 0:
        raise ValueError(
            f"prefill_steps must hold one number >= 0 for each of the {len(new_tokens)} requests"
        )
    return [before + tokens for before, tokens in zip(prefill, new_tokens, strict=True)]


def _utilization(new_tokens: Sequence[int], slots: int, finish: list[int]) -> Utilization:
    steps, tokens = max(finish), sum(new_tokens)
    return Utilization(
        steps=steps,
        tokens=tokens,
        slots=slots,
        utilization=tokens / (steps * slots),
        finish_steps=tuple(finish),
    )
