"""The accuracy tasks of a rollout: loaded once a process, their sizes remembered."""

import logging
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.release.workspace import Workspace
from tasks.store.digest import code_digest, digest_of, library_versions
from tasks.store.record import Record

if TYPE_CHECKING:
    from tasks.quality.harness import TaskSet

logger = logging.getLogger(__name__)


class TaskSizes(Record):
    """What the tasks are; a group stands here as its tasks.

    Attributes:
        items: items of each task, by name.
        generating: tasks that the model answers by generating.
    """

    items: dict[str, int]
    generating: tuple[str, ...]


def judged_tasks(workspace: Workspace) -> dict[str, int]:
    """The tasks that the accuracy margin applies to, and how many items each may draw.

    Raises:
        QualityError: a task that is unknown, broken or empty.
    """
    quality = workspace.config.quality
    if quality.margins.accuracy is None:
        return {}
    return {name: min(size, quality.tasks.items) for name, size in _sizes(workspace).items.items()}


def generates(workspace: Workspace, name: str) -> bool:
    """Whether the model answers a task by generating, under the engine's scheduler."""
    return name in _sizes(workspace).generating


def _sizes(workspace: Workspace) -> TaskSizes:
    quality = workspace.config.quality

    def compute() -> TaskSizes:
        tasks = task_set(workspace)
        return TaskSizes(
            items={name: tasks.size(name) for name in tasks.names},
            generating=tuple(name for name in tasks.names if tasks.generates(name)),
        )

    code = code_digest("tasks/quality", "tasks/release/gate_tasks.py")
    key = digest_of([workspace.items_digest, quality.tasks.names, library_versions("lm-eval"), code])
    return workspace.store.once(f"task-sizes-{key}", TaskSizes, compute)[0]


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
