"""Speculative decoding in closed form (Leviathan, Kalman and Matias, ICML 2023).

A round drafts `block` tokens and lets the target check them all in one pass. With a chance `acceptance` for
each token, the accepted ones are a prefix: the first refusal throws the rest of the block away. The target's
own token after that prefix is kept, so a round yields 1 + a + a^2 + ... + a^block tokens on average.

The rule of thumb `block * acceptance` is wrong at both ends. It counts tokens after a refusal as progress
(block 8 at 0.8: 6.4 tokens where there are 4.3), so it recommends long blocks that lose; and it leaves out
the target's own token (block 2 at 0.4: 0.8 tokens where there are 1.56), so it calls short blocks a loss that
win. It stands here to be shown beside the right one.
"""

from tasks.store.record import Record


class Speculation(Record):
    """What one choice of block length promises.

    Attributes:
        block: drafted tokens a round.
        acceptance: chance that a drafted token is accepted, given that those before it were.
        draft_cost: what a drafted token adds to a round, in plain passes of the target. As published, its drafting
            alone; measured in rounds that were played (tasks/batching/speculate.py), its checking too.
        round_cost: what a round costs more than a plain pass however long its block is, in the same unit; 0 as published.
        tokens_per_round: expected tokens of one round.
        speedup: over plain decoding. With the published cost, when a pass over block + 1 tokens costs as much
            as over one (memory-bound decoding).
        naive_tokens_per_round: block * acceptance, the rule of thumb.
        naive_speedup: what the rule of thumb makes of it.
    """

    block: int
    acceptance: float
    draft_cost: float
    round_cost: float = 0.0
    tokens_per_round: float
    speedup: float
    naive_tokens_per_round: float
    naive_speedup: float

    @property
    def pays(self) -> bool:
        """Whether it promises more than plain decoding."""
        return self.speedup > 1


def tokens_per_round(block: int, acceptance: float) -> float:
    """Return (1 - a^(block + 1)) / (1 - a): expected tokens of one round, from 1 to block + 1.

    Raises:
        ValueError: a negative block, or an acceptance outside [0, 1].
    """
    if block < 0 or not 0 <= acceptance <= 1:
        raise ValueError(f"block {block} must be >= 0 and acceptance {acceptance} must lie in [0, 1]")
    return sum(acceptance**accepted for accepted in range(block + 1))


def speculate(block: int, acceptance: float, draft_cost: float, round_cost: float = 0.0) -> Speculation:
    """Predict tokens a round and speed-up. A round costs one target pass, `round_cost`, and `block` draft tokens.

    Raises:
        ValueError: block below 1, an acceptance outside [0, 1], or a negative cost.
    """
    if block < 1 or draft_cost < 0 or round_cost < 0:
        raise ValueError(
            f"block {block} must be >= 1, draft_cost {draft_cost} and round_cost {round_cost} must be >= 0"
        )
    tokens, cost = tokens_per_round(block, acceptance), 1 + round_cost + draft_cost * block
    return Speculation(
        block=block,
        acceptance=acceptance,
        draft_cost=draft_cost,
        round_cost=round_cost,
        tokens_per_round=tokens,
        speedup=tokens / cost,
        naive_tokens_per_round=block * acceptance,
        naive_speedup=block * acceptance / cost,
    )


def best_block(
    acceptance: float, draft_cost: float, round_cost: float = 0.0, largest: int = 16
) -> Speculation:
    """The block length up to `largest` with the greatest speed-up; where none pays, the one that loses least."""
    return max(
        (speculate(block, acceptance, draft_cost, round_cost) for block in range(1, largest + 1)),
        key=lambda speculation: speculation.speedup,
    )


def costs_of_lengths(first: tuple[int, float], second: tuple[int, float]) -> tuple[float, float]:
    """What a drafted token and a round itself cost, from what rounds of two block lengths took over a plain pass.

    Args:
        first: block length, and (time of a round / time of a plain pass - 1).
        second: the same of a longer block.

    Returns:
        (draft_cost, round_cost): the line through both, neither part of it below 0.

    Raises:
        ValueError: the second block is not longer.
    """
    (short, below), (long, above) = first, second
    if long <= short:
        raise ValueError(f"blocks of {short} and {long} tokens: the second has to be longer")
    draft_cost = max(0.0, (above - below) / (long - short))
    return draft_cost, max(0.0, below - draft_cost * short)
