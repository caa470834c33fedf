"""What an engine's own per-token times say of speculation: the tokens of every round, and the acceptance behind them.

The tokens that one step accepts come out at one time. The first token of a request is its prompt's; every later step is a round of
1 + (accepted tokens). A round that stays below block + 1 tokens ended at a refusal; a request's last round may have been cut by its
length or its end, so that it shows what was accepted but no refusal. The acceptance, accepted / (accepted + refusals), is the
maximum-likelihood estimate of the chance of the closed form (tasks/batching/speculation.py) under that censoring, whatever the block
length. A round in which nothing could be drafted counts as refused: it yields what a refusal at once yields.
"""

from collections.abc import Sequence
from itertools import groupby, pairwise
from statistics import fmean

from tasks.engines.protocol import EngineError, Generation
from tasks.store.record import Record


class Rounds(Record):
    """Rounds of all requests together.

    Attributes:
        block: tokens drafted a round, at most.
        rounds: all of them.
        tokens: that they yielded.
        accepted: drafted tokens among those.
        refusals: rounds that ended at a refused token.
    """

    block: int
    rounds: int
    tokens: int
    accepted: int
    refusals: int

    @property
    def acceptance(self) -> float:
        """Chance that a drafted token is accepted, given that those before it were."""
        return self.accepted / (self.accepted + self.refusals) if self.accepted else 0.0

    @property
    def tokens_per_round(self) -> float:
        """Mean yield of a round, cut ones included."""
        return self.tokens / self.rounds


def count_rounds(generations: Sequence[Generation], block: int) -> Rounds:
    """Count the rounds of requests that were served with `block` drafted tokens.

    Raises:
        EngineError: no request has a round, or a round has more tokens than a block allows.
    """
    yields: list[int] = []
    refusals = 0
    for generation in generations:
        steps = [len(list(group)) for _, group in groupby(generation.token_times_s)]
        # A first step of several tokens is the prompt's token and a round at once.
        own = steps[1:] if steps[0] == 1 else [steps[0] - 1, *steps[1:]]
        yields += own
        refusals += sum(size <= block for size in own[:-1])
    if not yields:
        raise EngineError("no request made more than its first token: there are no rounds to count")
    if max(yields) > block + 1:
        raise EngineError(
            f"a round of {block} drafted tokens yielded {max(yields)}; {block + 1} are the most"
        )
    tokens = sum(yields)
    return Rounds(
        block=block, rounds=len(yields), tokens=tokens, accepted=tokens - len(yields), refusals=refusals
    )


def step_seconds(generations: Sequence[Generation]) -> float:
    """Mean time of the engine's steps while it served these requests together; steps in which a request began are left out.

    A mean, because rounds are not alike: one in which nothing could be drafted is a plain step.

    Raises:
        EngineError: no step is left.
    """
    ends = sorted({time for generation in generations for time in generation.token_times_s})
    begun = {generation.token_times_s[0] for generation in generations}
    steps = [after - before for before, after in pairwise(ends) if after not in begun]
    if not steps:
        raise EngineError("every step began a request: its time cannot be told from the prompt's")
    return fmean(steps)
