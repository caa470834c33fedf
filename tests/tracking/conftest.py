"""An embedded store for each test: a copy of one that was migrated once."""

import shutil
from pathlib import Path

import pytest

from tasks.tracking.store import Tracking, open_tracking


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEIRYO_MLFLOW", str(folder))
        open_tracking()
    return folder / "mlflow.db"


@pytest.fixture
def tracking(migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tracking:
    folder = tmp_path / "mlflow store"  # a blank in the path, as users have
    folder.mkdir()
    shutil.copy(migrated, folder / "mlflow.db")
    monkeypatch.setenv("KEIRYO_MLFLOW", str(folder))
    return open_tracking()
