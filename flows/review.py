"""What happened, and the release pointer: the verbs that read and move what rollouts left in MLflow.

`uri` is the MLflow server that the rollouts were logged to (`tracking.uri` of their configuration); None: the embedded store.
"""

from pathlib import Path

from configs.schema import TrackingSettings
from flows.offline import prepare_environment
from tasks.release.history import HistoryEntry, Move
from tasks.release.summary import MetricComparison, RolloutSummary, compare_runs
from tasks.store.record import Record
from tasks.store.store import Store, store_home
from tasks.tracking import query, registry
from tasks.tracking.runs import load_changed
from tasks.tracking.store import Tracking, open_tracking


class Verified(Record):
    """A champion whose files were all hashed again."""

    model: str
    version: int
    artifact: str
    files: int
    size_bytes: int

    @property
    def line(self) -> str:
        """One line for people."""
        return (
            f"{self.model}/{self.version}: {self.files} files, {self.size_bytes / 2**20:.1f} MiB, all as in the manifest "
            f"{self.artifact[:12]}"
        )


def list_runs(model: str | None, uri: str | None = None) -> tuple[query.RunRow, ...]:
    """All rollouts, newest first."""
    return query.list_runs(tracking_of(uri), model)


def load_run(reference: str, uri: str | None = None) -> RolloutSummary:
    """One rollout by id, beginning of an id, or "latest"."""
    return query.load_run(tracking_of(uri), reference)


def compare(first: str, second: str, uri: str | None = None) -> tuple[MetricComparison, ...]:
    """Two rollouts side by side."""
    tracking = tracking_of(uri)
    return compare_runs(query.load_run(tracking, first), query.load_run(tracking, second))


def save_report(reference: str, out: Path, uri: str | None = None) -> Path:
    """Render the report of a rollout to a file."""
    from tasks.report.html import render_report

    tracking = tracking_of(uri)
    evidence = query.load_evidence(tracking, reference)
    changed = load_changed(tracking, evidence.summary.run_id)
    out.write_text(render_report(evidence, changed=changed), encoding="utf-8")
    return out


def promote(target: str, uri: str | None = None) -> Move:
    """Make MODEL/VERSION the champion."""
    model, slash, version = target.rpartition("/")
    if not slash or not version.isdecimal():
        raise registry.UnknownRelease(
            f"{target!r} must be MODEL/VERSION, for example smollm2-135m-instruct/2"
        )
    return registry.promote(tracking_of(uri), model, int(version), reason="keiryo promote")


def rollback(model: str, to_version: int | None, to_stage: str | None, uri: str | None = None) -> Move:
    """Make an earlier version the champion."""
    return registry.rollback(tracking_of(uri), model, to_version, to_stage, reason="keiryo rollback")


def history(model: str, uri: str | None = None) -> tuple[HistoryEntry, ...]:
    """Every move of the champion, oldest first."""
    return registry.history(tracking_of(uri), model)


def verify(model: str, uri: str | None = None) -> Verified:
    """Hash the champion's files again, its draft model's among them.

    Raises:
        UnknownRelease: the model has no champion.
        StoreError: an artifact of it is missing or damaged.
    """
    champion = registry.champion(tracking_of(uri), model)
    if champion is None:
        raise registry.UnknownRelease(f"{model} has no champion; `keiryo promote {model}/VERSION` makes one")
    store = Store(store_home())
    artifacts = [store.open(digest) for digest in champion.candidate.artifacts]
    return Verified(
        model=model,
        version=champion.version,
        artifact=champion.candidate.artifact,
        files=sum(len(artifact.manifest.files) for artifact in artifacts),
        size_bytes=sum(artifact.size_bytes for artifact in artifacts),
    )


def tracking_of(uri: str | None) -> Tracking:
    """The server of an address, or the embedded store."""
    prepare_environment(store_home(), hub=False, threads=1)
    return open_tracking(TrackingSettings(uri=uri or None))
