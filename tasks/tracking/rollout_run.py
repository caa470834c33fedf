"""One rollout's place in MLflow: stages are recorded as they end, kept ones are registered, the end moves the champion."""

import logging
from dataclasses import dataclass
from pathlib import Path

from tasks.quality.changed_most import ChangedItem
from tasks.quality.samples import Samples
from tasks.release.evidence import Evidence
from tasks.release.history import ReleaseVersion
from tasks.release.stage_result import StageResult
from tasks.release.workspace import Workspace
from tasks.store.digest import digest_of
from tasks.store.errors import DamagedArtifact, MissingArtifact
from tasks.store.record import Record
from tasks.tracking.registry import promote, register_version, versions
from tasks.tracking.runs import load_changed, log_rollout_end, log_rollout_start, log_stage
from tasks.tracking.store import Tracking, open_tracking

logger = logging.getLogger(__name__)


class OpenRun(Record):
    """The parent run of a rollout that has not ended, so that a killed one goes on under the same run."""

    run_id: str | None


@dataclass(frozen=True)
class RolloutRun:
    """Where a rollout is recorded."""

    tracking: Tracking
    run_id: str
    workspace: Workspace

    @classmethod
    def open(cls, workspace: Workspace) -> "RolloutRun":
        """Begin the parent run, or take up the one that a killed rollout of the same configuration left."""
        tracking = open_tracking(workspace.config.tracking)
        unfinished = workspace.store.recall(_key(workspace), OpenRun)
        run_id = log_rollout_start(tracking, workspace.config, unfinished.run_id if unfinished else None)
        workspace.store.remember(_key(workspace), OpenRun(run_id=run_id))
        return cls(tracking, run_id, workspace)

    def record(self, result: StageResult) -> StageResult:
        """Log a stage with its samples; register its proposal when it was kept. Returns the result."""
        samples = {
            role: found
            for role, key in result.samples.items()
            if (found := self.workspace.store.recall(key, Samples)) is not None
        }
        stage_run = log_stage(self.tracking, self.run_id, result, samples, self._folders(result))
        if result.kept:
            register_version(
                self.tracking,
                self.workspace.config.model.name,
                result,
                rollout=self.run_id,
                stage_run=stage_run,
            )
        return result

    def _folders(self, result: StageResult) -> dict[str, Path]:
        """Where the stage's further artifacts lie; one that is damaged by now is not copied on."""
        found = {}
        for name, digest in result.artifacts.items():
            try:
                found[name] = self.workspace.store.open(digest).folder
            except (DamagedArtifact, MissingArtifact) as error:
                logger.warning("the %s is not logged: %s", name, error)
        return found

    def promote(self, result: StageResult, reason: str) -> ReleaseVersion:
        """Make the version of a kept stage the champion; returns it."""
        model = self.workspace.config.model.name
        wanted = (result.stage, result.proposal)
        version = next(
            v for v in reversed(versions(self.tracking, model)) if (v.stage, v.candidate) == wanted
        )
        return promote(self.tracking, model, version.version, reason).champion

    def changed_most(self) -> dict[str, tuple[ChangedItem, ...]]:
        """The samples that changed most, by stage."""
        return load_changed(self.tracking, self.run_id)

    def close(self, evidence: Evidence, report_html: str, figures: dict[str, str]) -> None:
        """Log the summary, the ledger and the report, and end the parent run."""
        log_rollout_end(
            self.tracking, evidence.summary, evidence.ledger, evidence.environment, report_html, figures
        )
        self.workspace.store.remember(_key(self.workspace), OpenRun(run_id=None))


def _key(workspace: Workspace) -> str:
    return f"open-run-{digest_of([workspace.config, workspace.source.digest])}"
