"""Where MLflow is: a server, or the embedded SQLite store with its artifact folder."""

import fcntl
import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from configs.schema import TrackingSettings

_DATABASE = "mlflow.db"


class TrackingError(RuntimeError):
    """MLflow did not answer, or holds something that the contract forbids."""


@dataclass(frozen=True)
class Tracking:
    """An open tracking store.

    Attributes:
        client: MLflow's client; every call names its run.
        uri: of tracking and registry.
        artifacts: artifact folder of the embedded store; None where the server decides.
        locks: folder of this machine's locks.
    """

    client: MlflowClient
    uri: str
    artifacts: Path | None
    locks: Path

    def experiment(self, model: str) -> str:
        """Id of the experiment of a model, `keiryo/<model>`; made when it is not there.

        Raises:
            TrackingError: the server does not answer, or the experiment was deleted.
        """
        name = f"keiryo/{model}"
        try:
            with self.lock(name):
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    location = (self.artifacts / model).as_uri() if self.artifacts else None
                    return str(self.client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            raise TrackingError(
                f"tracking.uri: {self.uri}: {error}; start the server, or set tracking.uri: null"
            ) from error
        if found.lifecycle_stage != "active":
            raise TrackingError(
                f"experiment {name} was deleted; restore it:"
                f" mlflow experiments restore -x {found.experiment_id}"
            )
        return str(found.experiment_id)

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold an exclusive lock among the processes and threads of this machine that use this store."""
        with _locked(self.locks / f"{hashlib.sha256(f'{self.uri} {name}'.encode()).hexdigest()[:16]}.lock"):
            yield


def embedded_folder() -> Path:
    """`$KEIRYO_MLFLOW`, else `mlflow/store` of the running checkout, else of the current folder."""
    if chosen := os.environ.get("KEIRYO_MLFLOW"):
        return Path(chosen).absolute()
    checkout = Path(__file__).resolve().parents[2]
    # Installed as a wheel, the folder two levels up is site-packages, and `mlflow` in it is the library.
    root = checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()
    return root / "mlflow" / "store"


def open_tracking(settings: TrackingSettings | None = None) -> Tracking:
    """Open the configured server, or the embedded store (made on first use, which takes some seconds)."""
    uri = settings.uri if settings else None
    return _open(uri, None) if uri else _open(None, embedded_folder())


@lru_cache(maxsize=8)
def _open(uri: str | None, folder: Path | None) -> Tracking:
    if folder is None:
        locks = Path(tempfile.gettempdir()) / f"keiryo-{os.getuid()}"
        locks.mkdir(mode=0o700, exist_ok=True)
        return Tracking(MlflowClient(uri, registry_uri=uri), str(uri), None, locks)
    locks = folder / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    _migrate(folder / _DATABASE, locks / "migrate.lock")
    uri = f"sqlite:///{folder / _DATABASE}"
    return Tracking(MlflowClient(uri, registry_uri=uri), uri, folder / "artifacts", locks)


def _migrate(database: Path, lock: Path) -> None:
    """Make the database aside and move it into place: a kill during the migrations leaves none behind."""
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with _locked(lock):
        if database.exists():
            return
        aside = database.with_suffix(".partial")
        aside.unlink(missing_ok=True)
        MlflowClient(f"sqlite:///{aside}").search_experiments(max_results=1)
        aside.replace(database)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
