"""Promotion, rollback and their history in a real registry."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fake_rollout import BATCHED, CONFIG, INT8, RESULTS

from tasks.release.history import HistoryEntry, champions
from tasks.tracking.registry import (
    UnknownRelease,
    champion,
    history,
    promote,
    register_version,
    rollback,
    versions,
)
from tasks.tracking.runs import log_rollout_start, log_stage
from tasks.tracking.store import Tracking, TrackingError, open_tracking

MODEL = CONFIG.model.name


@pytest.fixture(scope="module")
def filled(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with versions 1 (profile), 2 (quantize) and 3 (batching), made once."""
    folder = tmp_path_factory.mktemp("filled")
    shutil.copy(migrated, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEIRYO_MLFLOW", str(folder))
        register_all(open_tracking())
    return folder


@pytest.fixture
def registered(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tracking:
    """A copy of the filled store's database."""
    shutil.copy(filled / "mlflow.db", tmp_path / "mlflow.db")
    monkeypatch.setenv("KEIRYO_MLFLOW", str(tmp_path))
    return open_tracking()


def register_all(tracking: Tracking) -> str:
    run_id = log_rollout_start(tracking, CONFIG)
    for result in RESULTS:
        stage_run = log_stage(tracking, run_id, result)
        if result.kept:
            register_version(tracking, MODEL, result, run_id, stage_run)
    return run_id


def aliases(tracking: Tracking) -> dict[str, int]:
    return {alias: release.version for release in versions(tracking, MODEL) for alias in release.aliases}


def moves(tracking: Tracking) -> list[tuple[str, int | None, int | None]]:
    return [(entry.action, entry.from_version, entry.to_version) for entry in history(tracking, MODEL)]


def test_one_version_a_kept_stage_by_digest(registered: Tracking, filled: Path) -> None:
    known = versions(registered, MODEL)
    assert [(v.version, v.stage) for v in known] == [(1, "profile"), (2, "quantize"), (3, "batching")]
    assert known[1].candidate == INT8
    assert known[2].candidate == BATCHED
    assert aliases(registered) == {"candidate": 3}
    assert champion(registered, MODEL) is None
    weights = [path for path in (filled / "artifacts").rglob("*") if path.stat().st_size > 1_000_000]
    assert not weights


def test_an_unchanged_rollout_registers_nothing(registered: Tracking) -> None:
    promote(registered, MODEL, 3)
    register_all(registered)
    assert len(versions(registered, MODEL)) == 3
    assert aliases(registered)["champion"] == 3


def test_a_stage_that_was_rolled_back_cannot_be_registered(tracking: Tracking) -> None:
    run_id = log_rollout_start(tracking, CONFIG)
    with pytest.raises(ValueError, match="adapt was not kept"):
        register_version(tracking, MODEL, RESULTS[3], run_id, run_id)


def test_promote_and_roll_back(registered: Tracking) -> None:
    for version in (1, 2, 3):
        assert promote(registered, MODEL, version).changed
    assert aliases(registered) == {"champion": 3, "previous": 2}
    assert rollback(registered, MODEL).champion.version == 2
    assert aliases(registered) == {"champion": 2, "previous": 1}
    assert rollback(registered, MODEL).champion.version == 1  # further back, not to what was left
    assert aliases(registered) == {"champion": 1}
    with pytest.raises(UnknownRelease, match="--to-version"):
        rollback(registered, MODEL)
    assert rollback(registered, MODEL, to_version=3).champion.candidate == BATCHED
    assert moves(registered) == [
        ("promote", None, 1),
        ("promote", 1, 2),
        ("promote", 2, 3),
        ("rollback", 3, 2),
        ("rollback", 2, 1),
        ("rollback", 1, 3),
    ]


def test_roll_back_to_a_stage(registered: Tracking) -> None:
    promote(registered, MODEL, 3)
    move = rollback(registered, MODEL, to_stage="quantize", reason="too many flips")
    assert move.champion.version == 2
    entry = history(registered, MODEL)[-1]
    assert (entry.reason, entry.stage, entry.artifact) == ("too many flips", "quantize", INT8.artifact)
    with pytest.raises(UnknownRelease, match=r"stage 'distill'.*1 \(profile\)"):
        rollback(registered, MODEL, to_stage="distill")


def test_promoting_the_champion_changes_nothing(registered: Tracking) -> None:
    promote(registered, MODEL, 2)
    again = promote(registered, MODEL, 2)
    assert not again.changed
    assert "already" in again.message
    assert len(history(registered, MODEL)) == 1


def test_unknown_names_say_what_there_is(registered: Tracking) -> None:
    with pytest.raises(UnknownRelease, match=r"no version 9; there are 1 \(profile\), 2 \(quantize\)"):
        promote(registered, MODEL, 9)
    with pytest.raises(UnknownRelease, match=f"registered: {MODEL}"):
        promote(registered, "nobody", 1)
    for verb in (history, rollback):
        with pytest.raises(UnknownRelease, match="nobody"):
            verb(registered, "nobody")


def test_only_a_pass_is_promoted(registered: Tracking) -> None:
    registered.client.set_model_version_tag(MODEL, "2", "keiryo.verdict", "FAIL")
    with pytest.raises(TrackingError, match="verdict FAIL"):
        promote(registered, MODEL, 2)
    assert champion(registered, MODEL) is None


def test_a_promotion_killed_before_its_entry_is_found(registered: Tracking) -> None:
    promote(registered, MODEL, 1)
    registered.client.set_registered_model_alias(MODEL, "champion", "2")  # the atomic move, then SIGKILL
    promote(registered, MODEL, 3)
    assert moves(registered) == [("promote", None, 1), ("found", 1, 2), ("promote", 2, 3)]
    assert rollback(registered, MODEL).champion.version == 2


def test_a_kill_between_move_and_entry(registered: Tracking, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tasks.tracking.registry._append", killed)
        with pytest.raises(KeyboardInterrupt):
            promote(registered, MODEL, 2)
    assert moves(registered) == [("found", None, 2)]
    assert promote(registered, MODEL, 2).changed is False


def test_concurrent_promotions_keep_the_history_whole(registered: Tracking) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda version: promote(registered, MODEL, version), [1, 2, 3, 1, 2, 3]))
    chain = moves(registered)
    assert all(action == "promote" for action, _, _ in chain)
    assert [before for _, before, _ in chain] == [None, *(after for _, _, after in chain[:-1])]
    assert aliases(registered)["champion"] == chain[-1][2]


def test_the_stack_of_champions() -> None:
    def entry(action: str, version: int | None) -> HistoryEntry:
        return HistoryEntry(
            at="",
            action=action,
            from_version=None,
            to_version=version,
            stage=None,
            artifact=None,
            who="",
            reason="",
        )

    assert champions([entry("promote", 1), entry("promote", 2), entry("rollback", 1)]) == [1]
    assert champions([entry("promote", 1), entry("rollback", 3), entry("promote", 4)]) == [1, 3, 4]
    assert champions([entry("promote", 1), entry("found", None), entry("promote", 2)]) == [1, 2]


def test_the_store_survives_a_move_of_the_working_folder(registered: Tracking, tmp_path: Path) -> None:
    assert registered.uri.startswith("sqlite:////")
    assert str(tmp_path) in registered.uri
