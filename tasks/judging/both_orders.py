"""Every pair is asked in both orders; a preference counts only if it survives the swap."""

from collections.abc import Sequence
from typing import Literal

from tasks.judging.judge import Comparison, Judge, Preference

Outcome = Literal["first", "second", "tie", "inconsistent", "unparsable"]

_SWAPPED: dict[Preference, Preference] = {"A": "B", "B": "A"}
_OUTCOMES: dict[Preference, Outcome] = {"A": "first", "B": "second", "tie": "tie"}


def judge_pairs(judge: Judge, pairs: Sequence[Comparison]) -> list[Outcome]:
    """The judge's view of each pair, whichever answer it was shown first.

    "first" and "second" are the answers as they stand in `pairs`. "inconsistent": the preference followed the position;
    "unparsable": at least one of the two replies was none.

    Raises:
        JudgeError: the judge cannot be asked.
    """
    replies = judge.compare([*pairs, *(pair.swapped() for pair in pairs)])
    return [outcome(*both) for both in zip(replies[: len(pairs)], replies[len(pairs) :], strict=True)]


def outcome(straight: Preference, swapped: Preference) -> Outcome:
    """What two replies to one pair say together; the second was given with the answers exchanged."""
    if "unparsable" in (straight, swapped):
        return "unparsable"
    if straight != _SWAPPED.get(swapped, swapped):
        return "inconsistent"
    return _OUTCOMES[straight]
