"""The accuracy tasks of a rollout: loaded once a process, their sizes remembered."""

import logging
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.release.workspace import Workspace
from tasks.store.digest import code_digest, digest_of
from tasks.store.record import Record

if TYPE_CHECKING:
    from tasks.quality.harness import TaskSet

logger = logging.getLogger(__name__)


class TaskSizes(Record):
    """Items of each task, by name; a group stands here as its tasks."""

    items: dict[str, int]


def judged_tasks(workspace: Workspace) -> dict[str, int]:
    """The tasks that the accuracy margin applies to, and how many items each may draw.

    Raises:
        QualityError: a task that is unknown, broken or empty.
    """
    quality = workspace.config.quality
    if quality.margins.accuracy is None:
        return {}

    def compute() -> TaskSizes:
        tasks = task_set(workspace)
        return TaskSizes(items={name: tasks.size(name) for name in tasks.names})

    key = digest_of([workspace.items_digest, quality.tasks.names, code_digest("tasks/quality")])
    sizes, _ = workspace.store.once(f"task-sizes-{key}", TaskSizes, compute)
    return {name: min(size, quality.tasks.items) for name, size in sizes.items.items()}


def task_set(workspace: Workspace) -> "TaskSet":
    """The configured tasks, in the order that the seed draws.

    Raises:
        QualityError: a task that is unknown, broken or empty.
    """
    quality = workspace.config.quality
    return _loaded(quality.tasks.names, workspace.task_folder, quality.seed, workspace.items_digest)


@cache
def _loaded(names: tuple[str, ...], folder: Path | None, seed: int, items_digest: str) -> "TaskSet":
    """The digest of the items tells two states of one folder apart."""
    from tasks.quality.harness import TaskSet

    logger.info("  loading the tasks %s (items %s)", ", ".join(names), items_digest[:8])
    return TaskSet(names, include=folder, seed=seed)
