"""An embedded store for each test: a copy of one that was migrated once."""

import shutil
from pathlib import Path

import pytest

from tasks.tracking.store import Tracking, open_tracking


@pytest.fixture
def tracking(migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tracking:
    folder = tmp_path / "mlflow store"  # a blank in the path, as users have
    folder.mkdir()
    shutil.copy(migrated, folder / "mlflow.db")
    monkeypatch.setenv("KEIRYO_MLFLOW", str(folder))
    return open_tracking()
