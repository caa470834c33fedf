"""The decisions of people on a rollout: appended to the store, never changed, each signed and chained to the one before.

An entry holds the name, the time and the digest of what was decided on; its own digest is over all of that and over the
digest of the entry before it. An entry that was changed, taken out or put in between is found when the log is read. It is no
cryptographic signature: whoever may write to the store may write a whole new log.
"""

from datetime import UTC, datetime

from tasks.judging.sheet import Preferences
from tasks.judging.spot_check import SpotCheckDecision
from tasks.store.digest import digest_of
from tasks.store.errors import StoreError
from tasks.store.record import Record
from tasks.store.store import Store


class SignedDecision(Record):
    """One entry.

    Attributes:
        number: from 1, in the order in which they were made.
        rollout: MLflow's id of the rollout.
        stage: whose proposal was decided on.
        decision: who decided what, and for how long it stands.
        decided_at: UTC time, ISO 8601.
        pairs: digest of the blinded pairs that could be seen.
        preferences: what the sheet said; None where none was given.
        previous: digest of the entry before; None for the first.
    """

    number: int
    rollout: str
    stage: str
    decision: SpotCheckDecision
    decided_at: str
    pairs: str
    preferences: Preferences | None
    previous: str | None

    @property
    def digest(self) -> str:
        """Of the whole entry."""
        return digest_of(self)

    @property
    def line(self) -> str:
        """One line for people."""
        made, seen = self.decision, f"; {self.preferences.line}" if self.preferences else ""
        return (
            f"{made.decision} by {made.approver}, {self.decided_at}, until {made.expires_on}: {made.reason} "
            f"({self.stage}, artifact {made.artifact[:12]}, entry {self.digest[:12]}){seen}"
        )


def append_decision(
    store: Store,
    rollout: str,
    stage: str,
    decision: SpotCheckDecision,
    pairs: str,
    preferences: Preferences | None,
) -> SignedDecision:
    """Add an entry to the log of a rollout.

    Raises:
        StoreError: the log is damaged, or the disk is full.
    """
    with store.lock(f"{_log(rollout)}log"):
        before = decisions(store, rollout)
        entry = SignedDecision(
            number=len(before) + 1,
            rollout=rollout,
            stage=stage,
            decision=decision,
            decided_at=datetime.now(UTC).isoformat(timespec="seconds"),
            pairs=pairs,
            preferences=preferences,
            previous=before[-1].digest if before else None,
        )
        store.remember(f"{_log(rollout)}{entry.number:04d}", entry)
    return entry


def decisions(store: Store, rollout: str) -> tuple[SignedDecision, ...]:
    """The log of a rollout, oldest first.

    Raises:
        StoreError: an entry is missing, damaged, or not the one that the next was appended to.
    """
    entries: list[SignedDecision] = []
    for number in range(1, len(list((store.home / "results").glob(f"{_log(rollout)}[0-9]*.json"))) + 1):
        entry = store.recall(f"{_log(rollout)}{number:04d}", SignedDecision)
        before = entries[-1].digest if entries else None
        if entry is None or (entry.number, entry.rollout, entry.previous) != (number, rollout, before):
            raise StoreError(
                f"the decisions on rollout {rollout} were tampered with or damaged: entry {number} is not what was "
                f"appended; see {store.home / 'quarantine'}, and decide again on a new rollout"
            )
        entries.append(entry)
    return tuple(entries)


def _log(rollout: str) -> str:
    return f"spot-check-decision-{rollout}-"
