"""KV-cache memory wasted by contiguous and by paged allocation (Kwon et al., SOSP 2023)."""

from collections.abc import Sequence
from typing import Literal

from tasks.engines.protocol import GenerationRequest
from tasks.store.record import Record


class CacheAllocation(Record):
    """The cache of a request list when every request has reached its end.

    Attributes:
        policy: contiguous: one piece a request, large enough for the longest it may become; padded: a static
            batch, every row as long as the longest of its batch; paged: blocks, taken as the request grows.
        used_bytes: keys and values that exist.
        reserved_bytes: memory taken for them.
        wasted_fraction: 1 - used / reserved.
    """

    policy: Literal["contiguous", "padded", "paged"]
    used_bytes: int
    reserved_bytes: int
    wasted_fraction: float


def contiguous(
    requests: Sequence[GenerationRequest], token_bytes: int, reserve_tokens: int
) -> CacheAllocation:
    """One piece of `reserve_tokens` tokens for each request, because its length is not known in advance.

    Args:
        requests: the list; a request ends at prompt + max_new_tokens.
        token_bytes: keys and values of one token over all layers.
        reserve_tokens: the longest sequence a request may become (the served context length).

    Raises:
        ValueError: a request is longer than `reserve_tokens`, or there is none.
    """
    lengths = _lengths(requests)
    if max(lengths) > reserve_tokens:
        raise ValueError(
            f"a request of {max(lengths)} tokens does not fit reserve_tokens {reserve_tokens}; raise it"
        )
    return _allocation("contiguous", sum(lengths) * token_bytes, len(lengths) * reserve_tokens * token_bytes)


def padded(requests: Sequence[GenerationRequest], token_bytes: int, slots: int) -> CacheAllocation:
    """Static batches of `slots` rows, each as long as its longest; the largest batch is reported.

    Raises:
        ValueError: no requests, or no slots.
    """
    if slots < 1:
        raise ValueError(f"slots is {slots}; at least 1 request must fit")
    lengths = _lengths(requests)
    batches = [lengths[first : first + slots] for first in range(0, len(lengths), slots)]
    largest = max(batches, key=lambda batch: max(batch) * len(batch))
    return _allocation("padded", sum(largest) * token_bytes, max(largest) * len(largest) * token_bytes)


def paged(requests: Sequence[GenerationRequest], token_bytes: int, block_tokens: int) -> CacheAllocation:
    """Blocks of `block_tokens` tokens: only the last block of a request is partly empty.

    Raises:
        ValueError: no requests, or a block without tokens.
    """
    if block_tokens < 1:
        raise ValueError(f"block_tokens is {block_tokens}; a block holds at least 1 token")
    lengths = _lengths(requests)
    blocks = sum(-(-length // block_tokens) for length in lengths)
    return _allocation("paged", sum(lengths) * token_bytes, blocks * block_tokens * token_bytes)


def _lengths(requests: Sequence[GenerationRequest]) -> list[int]:
    """Tokens of each request at its end."""
    if not requests:
        raise ValueError("there are no requests; raise requests.count")
    return [len(request.prompt) + request.max_new_tokens for request in requests]


def _allocation(
    policy: Literal["contiguous", "padded", "paged"], used_bytes: int, reserved_bytes: int
) -> CacheAllocation:
    return CacheAllocation(
        policy=policy,
        used_bytes=used_bytes,
        reserved_bytes=reserved_bytes,
        wasted_fraction=1 - used_bytes / reserved_bytes,
    )
