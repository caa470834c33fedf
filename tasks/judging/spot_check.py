"""Human spot checks: blinded pairs of the items that changed most, and the decision, which is signed and expires."""

import random
from collections.abc import Sequence
from datetime import date
from typing import Literal, Self

from pydantic import Field, model_validator

from configs.behaviour import SpotCheckSettings
from tasks.behaviour.rows import PromptRow
from tasks.judging.error import DecisionError
from tasks.store.record import Record


class BlindedPair(Record):
    """What a person sees: nothing in it tells which model wrote which answer."""

    number: int
    prompt: str
    answer_a: str
    answer_b: str


class BlindingKey(Record):
    """Kept apart from the pairs until the decision is made.

    Attributes:
        prompt_ids: the prompt of each pair, in the order of their numbers.
        candidate_is: the side that the candidate is on, likewise.
        seed: the sides were drawn with it.
    """

    prompt_ids: tuple[str, ...]
    candidate_is: tuple[Literal["A", "B"], ...]
    seed: int


class SpotCheckDecision(Record):
    """A person's decision on one artifact.

    Attributes:
        approver: the person's name.
        decision: "approve" or "reject".
        artifact: digest of the artifact decided on.
        reason: why.
        decided_on: first day on which it stands.
        expires_on: last day on which it stands.
    """

    approver: str = Field(pattern=r"\S")
    decision: Literal["approve", "reject"]
    artifact: str = Field(pattern=r"^[0-9a-f]{64}$")
    reason: str = Field(pattern=r"\S")
    decided_on: date
    expires_on: date

    @model_validator(mode="after")
    def _expires_later(self) -> Self:
        if self.expires_on <= self.decided_on:
            raise ValueError(
                f"expires_on ({self.expires_on}) must be later than decided_on ({self.decided_on})"
            )
        return self


def blinded_pairs(
    rows: Sequence[PromptRow], count: int, seed: int
) -> tuple[tuple[BlindedPair, ...], BlindingKey]:
    """The items that changed most, sides by chance; answers that are the same are no pair.

    Args:
        rows: of a `BehaviourReport`, in any order.
        count: pairs at most.
        seed: draws the sides and the order, so that a high number does not mean a small change.

    Returns:
        The pairs to show, and the key to keep.
    """
    rng = random.Random(f"{seed}:spot check")
    changed = [row for row in rows if row.source_text != row.candidate_text]
    shown = sorted(changed, key=lambda row: (-row.change, row.prompt_id))[:count]
    rng.shuffle(shown)
    sides = tuple(rng.choice(("A", "B")) for _ in shown)
    pairs = []
    for number, (row, side) in enumerate(zip(shown, sides, strict=True), start=1):
        answers = (row.candidate_text, row.source_text)
        first, second = answers if side == "A" else answers[::-1]
        pairs.append(BlindedPair(number=number, prompt=row.prompt, answer_a=first, answer_b=second))
    key = BlindingKey.model_validate(
        {"prompt_ids": tuple(row.prompt_id for row in shown), "candidate_is": sides, "seed": seed}
    )
    return tuple(pairs), key


def check_decision(decision: SpotCheckDecision, settings: SpotCheckSettings) -> None:
    """Refuse a decision that would stand for longer than the config allows.

    Raises:
        DecisionError: it does.
    """
    days = (decision.expires_on - decision.decided_on).days
    if days > settings.max_valid_days:
        raise DecisionError(
            f"expires_on: {decision.expires_on} is {days} days after decided_on; at most "
            f"{settings.max_valid_days} (behaviour.spot_check.max_valid_days) are allowed: choose an earlier day"
        )


def decision_stands(
    decision: SpotCheckDecision, today: date, artifact_digest: str, settings: SpotCheckSettings
) -> bool:
    """Whether a decision (of either kind) holds for an artifact today: made, not expired, of this artifact, not too long."""
    return (
        decision.artifact == artifact_digest
        and decision.decided_on <= today <= decision.expires_on
        and (decision.expires_on - decision.decided_on).days <= settings.max_valid_days
    )
