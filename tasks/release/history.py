"""Released versions, and the append-only history of which one was the champion."""

from collections.abc import Iterable
from typing import Literal

from tasks.release.candidate import Candidate
from tasks.store.record import Record


class ReleaseVersion(Record):
    """One registered version: an artifact under one engine configuration.

    Attributes:
        model: registered name.
        version: number, from 1.
        stage: the stage that proposed it.
        candidate: the artifact and what it is served under.
        verdict: of the stage's gate.
        rollout: MLflow run id of the rollout that made it first.
        aliases: "champion", "candidate", "previous".
    """

    model: str
    version: int
    stage: str
    candidate: Candidate
    verdict: str
    rollout: str
    aliases: tuple[str, ...] = ()


class HistoryEntry(Record):
    """One move of the champion.

    Attributes:
        at: UTC time, ISO 8601 with microseconds.
        action: "promote" and "rollback" were asked for; "found" is a move that nothing recorded: a process
            killed between the move and its entry, or somebody who moved the alias in the MLflow UI.
        from_version: the champion before; None when there was none.
        to_version: the champion after; None when the alias was found removed.
        stage: stage of the version moved to.
        artifact: its artifact.
        who: the account that did it.
        reason: one line.
    """

    at: str
    action: Literal["promote", "rollback", "found"]
    from_version: int | None
    to_version: int | None
    stage: str | None
    artifact: str | None
    who: str
    reason: str


class Move(Record):
    """The answer to `promote` and `rollback`.

    Attributes:
        changed: False when the version was champion already.
        champion: the champion now.
        message: one line for the user.
    """

    changed: bool
    champion: ReleaseVersion
    message: str


def champions(history: Iterable[HistoryEntry]) -> list[int]:
    """The versions that a rollback would undo, oldest first; the last is the champion.

    Promotions stack up. A rollback takes off what was promoted after its target, so a second one goes further
    back instead of returning to what the first one left.
    """
    stack: list[int] = []
    for entry in history:
        version = entry.to_version
        if version is None:
            continue
        if entry.action == "rollback" and version in stack:
            while stack[-1] != version:
                stack.pop()
        elif not stack or stack[-1] != version:
            stack.append(version)
    return stack
