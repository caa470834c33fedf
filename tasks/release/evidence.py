"""Everything that the report of a rollout shows, as one record."""

from configs.schema import Config
from tasks.release.ledger import Ledger
from tasks.release.stage_result import StageResult
from tasks.release.summary import RolloutSummary
from tasks.store.record import Record


class Evidence(Record):
    """What was asked for, what happened, and on which machine.

    Attributes:
        config: the configuration of the rollout.
        summary: its outcome.
        results: every stage, in the order they ran.
        ledger: None when the rollout ended before the closing measurement.
        environment: machine and library versions, readable name to readable value.
    """

    config: Config
    summary: RolloutSummary
    results: tuple[StageResult, ...]
    ledger: Ledger | None
    environment: dict[str, str]
