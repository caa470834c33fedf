"""Repetition in a sequence of tokens: the share of repeated n-grams, and loops that never end.

Both work on token ids, so that they mean the same in a language that puts no spaces between words.
"""

from collections.abc import Hashable, Sequence

MIN_LOOP_REPEATS = 4
"""Repeats of a period before an ending is a loop: "ha ha ha" is not."""

MIN_LOOP_TOKENS = 12
"""Tokens that the repeats must cover."""


def repeated_share(tokens: Sequence[Hashable], ngram: int) -> float:
    """Share of n-grams that stood in the text before, in [0, 1); 0 for a text shorter than two n-grams."""
    grams = [tuple(tokens[i : i + ngram]) for i in range(len(tokens) - ngram + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def ends_in_loop(tokens: Sequence[Hashable]) -> bool:
    """Whether the text ends in one stretch of tokens repeated at least 4 times, over at least 12 tokens."""
    for period in range(1, len(tokens) // MIN_LOOP_REPEATS + 1):
        same = 0
        while same < len(tokens) - period and tokens[-1 - same] == tokens[-1 - same - period]:
            same += 1
        looped = same + period
        if looped >= max(MIN_LOOP_TOKENS, MIN_LOOP_REPEATS * period):
            return True
    return False
