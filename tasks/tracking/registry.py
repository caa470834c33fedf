"""The registry: one version a kept stage, referenced by digest, and the champion's moves with their history.

A promotion is one atomic move of the alias `champion`; its history entry follows, as one tag of the
registered model under a key that no other entry can have. The alias is the truth. A process killed between
the two leaves a move without an entry, which the next operation finds and records, so the history never
claims a move that did not happen and never misses one.
"""

import getpass
import secrets
from datetime import UTC, datetime

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, RESOURCE_DOES_NOT_EXIST, ErrorCode

from tasks.release.candidate import Candidate
from tasks.release.history import HistoryEntry, Move, ReleaseVersion, champions
from tasks.release.stage_result import StageResult
from tasks.tracking.global_address import global_address
from tasks.tracking.store import Tracking, TrackingError

_ENTRY = "keiryo.history."


class UnknownRelease(LookupError):
    """No such model, version or stage in the registry; the message lists what there is."""


def register_version(
    tracking: Tracking, model: str, result: StageResult, rollout: str, stage_run: str
) -> ReleaseVersion:
    """Register the proposal of a kept stage and let `candidate` point at it, unless it is the champion.

    The same artifact under the same engine settings from the same stage is the same version: an unchanged
    rollout adds none.

    Raises:
        ValueError: the stage was not kept, or proposes nothing.
    """
    if result.proposal is None or not result.kept:
        raise ValueError(
            f"stage {result.stage} was not kept ({result.reason}); only kept stages are registered"
        )
    with tracking.lock(model):
        _create_model(tracking, model)
        same = (result.stage, result.proposal)
        known = [v for v in versions(tracking, model) if (v.stage, v.candidate) == same]
        number = known[-1].version if known else _create_version(tracking, model, result, rollout, stage_run)
        if _champion(tracking, model) != number:
            tracking.client.set_registered_model_alias(model, "candidate", str(number))
        return find_version(tracking, model, number)


def versions(tracking: Tracking, model: str) -> tuple[ReleaseVersion, ...]:
    """All versions of a model, oldest first."""
    found = tracking.client.search_model_versions(f"name = '{model}'", max_results=10_000)
    aliases = tracking.client.get_registered_model(model).aliases if found else {}
    return tuple(
        sorted((_release(version, aliases) for version in found), key=lambda release: release.version)
    )


def find_version(tracking: Tracking, model: str, version: int) -> ReleaseVersion:
    """One version.

    Raises:
        UnknownRelease: there is no such model or version.
    """
    known = versions(tracking, model)
    for release in known:
        if release.version == version:
            return release
    if not known:
        names = ", ".join(each.name for each in tracking.client.search_registered_models()) or "none"
        raise UnknownRelease(f"no model {model!r} in the registry; registered: {names}")
    there = ", ".join(f"{release.version} ({release.stage})" for release in known)
    raise UnknownRelease(f"{model} has no version {version}; there are {there}")


def champion(tracking: Tracking, model: str) -> ReleaseVersion | None:
    """The version that is served; None when nothing was promoted."""
    number = _champion(tracking, model)
    return None if number is None else find_version(tracking, model, number)


def promote(tracking: Tracking, model: str, version: int, reason: str = "") -> Move:
    """Make a version the champion. Promoting the champion changes nothing and says so.

    Raises:
        UnknownRelease: there is no such model or version.
        TrackingError: the version did not pass its gate.
    """
    with tracking.lock(model):
        target = find_version(tracking, model, version)
        if target.verdict != "PASS":
            raise TrackingError(f"{model}/{version} has the verdict {target.verdict}; only PASS is promoted")
        return _move(tracking, target, "promote", reason)


def rollback(
    tracking: Tracking,
    model: str,
    to_version: int | None = None,
    to_stage: str | None = None,
    reason: str = "",
) -> Move:
    """Make an earlier version the champion: the one before, a given one, or a stage's newest below it.

    Raises:
        UnknownRelease: there is no such model, version or stage, or nothing to go back to.
    """
    with tracking.lock(model):
        past = champions(_reconciled(tracking, model))
        if to_version is None and to_stage is not None:
            to_version = _of_stage(tracking, model, to_stage, past[-1] if past else None)
        elif to_version is None:
            if len(past) < 2:
                raise UnknownRelease(
                    f"{model} had no champion before this one; name a target: --to-version N"
                )
            to_version = past[-2]
        return _move(tracking, find_version(tracking, model, to_version), "rollback", reason)


def history(tracking: Tracking, model: str) -> tuple[HistoryEntry, ...]:
    """Every move of the champion, oldest first.

    Raises:
        UnknownRelease: there is no such model.
    """
    with tracking.lock(model):
        return _reconciled(tracking, model)


def _move(tracking: Tracking, target: ReleaseVersion, action: str, reason: str) -> Move:
    model, version = target.model, target.version
    before = _reconciled(tracking, model)
    current = _champion(tracking, model)
    if current == version:
        return Move(
            changed=False,
            champion=target,
            message=f"{model}/{version} is the champion already; nothing changed",
        )
    entry = HistoryEntry.model_validate(
        {
            "at": _now(),
            "action": action,
            "from_version": current,
            "to_version": version,
            "stage": target.stage,
            "artifact": target.candidate.artifact,
            "who": getpass.getuser(),
            "reason": reason,
        }
    )
    tracking.client.set_registered_model_alias(model, "champion", str(version))
    _append(tracking, model, entry)
    _point_aliases(tracking, model, champions((*before, entry)))
    was = f", was {model}/{current}" if current is not None else ""
    return Move(
        changed=True,
        champion=find_version(tracking, model, version),
        message=f"{model}/{version} ({target.stage}) is the champion now{was}",
    )


def _point_aliases(tracking: Tracking, model: str, past: list[int]) -> None:
    """`previous` is where a rollback would go; a champion is no candidate any more."""
    if len(past) > 1:
        tracking.client.set_registered_model_alias(model, "previous", str(past[-2]))
    else:
        tracking.client.delete_registered_model_alias(model, "previous")
    if str(tracking.client.get_registered_model(model).aliases.get("candidate")) == str(past[-1]):
        tracking.client.delete_registered_model_alias(model, "candidate")


def _reconciled(tracking: Tracking, model: str) -> tuple[HistoryEntry, ...]:
    """The entries, with one more when the champion stands where no entry left it."""
    try:
        tags = tracking.client.get_registered_model(model).tags
    except MlflowException as error:
        if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            raise UnknownRelease(f"no model {model!r} in the registry") from error
        raise
    keys = sorted(key for key in tags if key.startswith(_ENTRY))
    entries = tuple(HistoryEntry.model_validate_json(tags[key]) for key in keys)
    recorded = entries[-1].to_version if entries else None
    actual = _champion(tracking, model)
    if actual == recorded:
        return entries
    release = None if actual is None else find_version(tracking, model, actual)
    found = HistoryEntry(
        at=_now(),
        action="found",
        from_version=recorded,
        to_version=actual,
        stage=release.stage if release else None,
        artifact=release.candidate.artifact if release else None,
        who=getpass.getuser(),
        reason="the alias was found moved without an entry: a killed promotion, or a move in the MLflow UI",
    )
    _append(tracking, model, found)
    return (*entries, found)


def _append(tracking: Tracking, model: str, entry: HistoryEntry) -> None:
    key = f"{_ENTRY}{entry.at}-{secrets.token_hex(4)}"
    tracking.client.set_registered_model_tag(model, key, entry.model_dump_json())


def _champion(tracking: Tracking, model: str) -> int | None:
    number = tracking.client.get_registered_model(model).aliases.get("champion")
    return None if number is None else int(number)


def _of_stage(tracking: Tracking, model: str, stage: str, below: int | None) -> int:
    earlier = [v for v in versions(tracking, model) if below is None or v.version < below]
    for release in reversed(earlier):
        if release.stage == stage:
            return release.version
    there = ", ".join(f"{release.version} ({release.stage})" for release in earlier) or "none"
    raise UnknownRelease(
        f"{model} has no version of stage {stage!r} before the champion; earlier versions: {there}"
    )


def _create_model(tracking: Tracking, model: str) -> None:
    try:
        tracking.client.create_registered_model(
            model, description="Released by Keiryo; weights are referenced by digest."
        )
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise


def _create_version(tracking: Tracking, model: str, result: StageResult, rollout: str, stage_run: str) -> int:
    proposal = result.proposal
    if proposal is None:
        raise ValueError(f"stage {result.stage} proposes nothing")
    tags = {
        "keiryo.stage": result.stage,
        "keiryo.artifact": proposal.artifact,
        "keiryo.engine": proposal.engine.model_dump_json(),
        "keiryo.candidate": proposal.model_dump_json(),
        "keiryo.verdict": result.verdict,
        "keiryo.rollout": rollout,
    }
    with global_address(tracking.uri):
        external = mlflow.create_external_model(
            name=f"{model}-{result.stage}",
            source_run_id=stage_run,
            tags=tags,
            params={"weights": proposal.weights},
            experiment_id=tracking.client.get_run(stage_run).info.experiment_id,
        )
    source = f"models:/{external.model_id}"
    version = tracking.client.create_model_version(
        model, source, run_id=stage_run, tags=tags, description=result.reason, model_id=external.model_id
    )
    return int(version.version)


def _release(version: ModelVersion, aliases: dict[str, str]) -> ReleaseVersion:
    tags = version.tags
    return ReleaseVersion(
        model=version.name,
        version=int(version.version),
        stage=tags["keiryo.stage"],
        candidate=Candidate.model_validate_json(tags["keiryo.candidate"]),
        verdict=tags["keiryo.verdict"],
        rollout=tags["keiryo.rollout"],
        aliases=tuple(
            sorted(alias for alias, number in aliases.items() if int(number) == int(version.version))
        ),
    )


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")  # MLflow refuses "+" in a key
