"""`keiryo approve` and `keiryo reject`: a person's decision on the blinded pairs of a rollout."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from configs.behaviour import SpotCheckSettings
from flows.review import tracking_of
from tasks.judging.decision_log import SignedDecision, append_decision, decisions
from tasks.judging.error import DecisionError
from tasks.judging.sheet import Preferences, read_pairs, read_sheet, unblind
from tasks.judging.spot_check import BlindedPair, BlindingKey, SpotCheckDecision
from tasks.release.stage_result import StageResult
from tasks.store.digest import digest_of
from tasks.store.errors import StoreError
from tasks.store.store import Store, store_home
from tasks.tracking import query
from tasks.tracking.decisions import tag_decision

PAIRS = "spot_check.jsonl"


def decide(
    reference: str,
    decision: Literal["approve", "reject"],
    *,
    approver: str,
    reason: str,
    days: int | None = None,
    sheet: Path | None = None,
    uri: str | None = None,
) -> SignedDecision:
    """Append a decision to the rollout's log and tag its runs with it.

    Args:
        reference: run id, the beginning of one, or "latest".
        decision: what was decided.
        approver: the person's name.
        reason: why.
        days: how long it stands; None: as long as the configuration allows.
        sheet: the pairs with a label each; None: nothing is unblinded.
        uri: MLflow server; None: the embedded store.

    Raises:
        DecisionError: there is nothing to decide on, or the decision or its sheet breaks a rule.
        StoreError: the key of the blinding is gone, or the log is damaged.
    """
    tracking, store = tracking_of(uri), Store(store_home())
    evidence = query.load_evidence(tracking, reference)
    rollout, behaviour = evidence.summary.run_id, evidence.config.behaviour
    result = _decided_on(evidence.results)
    if result is None or result.proposal is None or behaviour is None:
        raise DecisionError(
            f"rollout {rollout} has no blinded pairs of a candidate that was kept, so there is nothing to decide on; "
            "they are made where `behaviour` is configured and the answers differ"
        )
    pairs = read_pairs(result.text[PAIRS])
    made = _made(approver, decision, result.proposal.artifact, reason, days, behaviour.spot_check)
    preferences = None if sheet is None else _preferences(store, sheet, pairs)
    entry = append_decision(store, rollout, result.stage, made, digest_of(list(pairs)), preferences)
    tag_decision(tracking, rollout, result.stage, entry.number, entry.line)
    return entry


def _made(
    approver: str,
    decision: Literal["approve", "reject"],
    artifact: str,
    reason: str,
    days: int | None,
    limits: SpotCheckSettings,
) -> SpotCheckDecision:
    most = limits.max_valid_days
    if days is not None and not 1 <= days <= most:
        raise DecisionError(f"--days {days}: must lie in 1 to {most} (behaviour.spot_check.max_valid_days)")
    today = datetime.now(UTC).date()
    try:
        return SpotCheckDecision(
            approver=approver,
            decision=decision,
            artifact=artifact,
            reason=reason,
            decided_on=today,
            expires_on=today + timedelta(days=most if days is None else days),
        )
    except ValidationError as error:
        first = error.errors()[0]
        name = {"approver": "--by", "reason": "--reason"}.get(str(first["loc"][0]), str(first["loc"][0]))
        raise DecisionError(f"{name} {first['input']!r}: must not be empty") from error


def _preferences(store: Store, sheet: Path, pairs: Sequence[BlindedPair]) -> Preferences:
    labels = read_sheet(sheet, pairs)
    key = store.recall(f"spot-check-key-{digest_of(list(pairs))}", BlindingKey)
    if key is None:
        raise StoreError(
            f"the key of the blinded pairs is not in {store.home}; decide where the rollout ran (KEIRYO_HOME), or "
            "without --sheet"
        )
    return unblind(labels, key)


def decisions_on(rollout: str) -> tuple[SignedDecision, ...]:
    """What people decided on a rollout, oldest first.

    Raises:
        StoreError: the log is damaged.
    """
    return decisions(Store(store_home()), rollout)


def _decided_on(results: tuple[StageResult, ...]) -> StageResult | None:
    """The last stage whose proposal was kept and has pairs."""
    with_pairs = [result for result in results if result.kept and result.text.get(PAIRS)]
    return with_pairs[-1] if with_pairs else None
