"""The training rows that `adapt.data` names, and the check that they do not repeat what the gate judges on."""

from pathlib import Path

from tasks.data.leakage import leaks
from tasks.data.training_rows import DataError, TrainingRow, read_rows
from tasks.release.gate_tasks import judged_tasks, task_set
from tasks.release.workspace import Workspace
from tasks.store.digest import code_digest, digest_of
from tasks.store.record import Record


class Leakage(Record):
    """What was found.

    Attributes:
        rows: training rows that repeat an item of the gate.
        example: the first of them, in words; "" where there is none.
    """

    rows: int
    example: str


def training_rows(workspace: Workspace) -> tuple[TrainingRow, ...]:
    """The rows that `adapt.data` names: of its file, or the train part of the rollout's text.

    Raises:
        DataError: the file cannot be read, a row breaks the rule, or there are none.
    """
    settings = workspace.config.adapt
    if settings is None or settings.data is None or not _has_file(workspace):
        return tuple(TrainingRow(i, s.text) for i, s in enumerate(workspace.splits.train, start=1))
    return read_rows(Path(settings.data))


def search_texts(workspace: Workspace) -> tuple[str, ...]:
    """The search split: what early stopping looks at."""
    return tuple(section.text for section in workspace.splits.search)


def training_leakage(workspace: Workspace) -> Leakage:
    """Rows that repeat the gate's text or the items of its tasks; found once for the same rows and items.

    Raises:
        DataError: see `training_rows`.
        QualityError: a task that is unknown, broken or empty.
    """
    rows = training_rows(workspace)
    plain = [row.plain for row in rows]
    quality = workspace.config.quality
    asked = [workspace.items_digest, workspace.splits.digest, quality.tasks, quality.seed, digest_of(plain)]
    key = digest_of([*asked, code_digest("tasks/data", "tasks/release/training_data.py")])

    def compute() -> Leakage:
        items = [section.text for section in workspace.splits.gate]
        if sizes := judged_tasks(workspace):
            tasks = task_set(workspace)
            items += [text for name, count in sizes.items() for text in tasks.texts(name, count)]
        found = leaks(plain, items)
        if not found:
            return Leakage(rows=0, example="")
        first = found[0]
        return Leakage(
            rows=len(found),
            example=f"row {rows[first.row].line} repeats {first.text!r} (similarity {first.similarity:.2f})",
        )

    return workspace.store.once(f"leakage-{key}", Leakage, compute)[0]


def leakage_metrics(workspace: Workspace) -> dict[str, float]:
    """Leaked rows of a file under the name of the MLflow contract; the rollout's own text is disjoint by topic."""
    return {"train/leaked_rows": float(training_leakage(workspace).rows)} if _has_file(workspace) else {}


def check_training_data(workspace: Workspace) -> None:
    """Read the rows of a training file and refuse those that the gate would judge on, before anything runs.

    Raises:
        DataError: the message names the file, the line and the rule.
        QualityError: a task that is unknown, broken or empty.
    """
    settings = workspace.config.adapt
    if settings is None or not _has_file(workspace):
        return
    leakage = training_leakage(workspace)
    if leakage.rows and not settings.allow_leakage:
        raise DataError(
            f"adapt.data: {settings.data}: {leakage.rows} row(s) repeat items that the gate judges on; {leakage.example}; "
            "take them out, or set adapt.allow_leakage: true"
        )


def _has_file(workspace: Workspace) -> bool:
    settings = workspace.config.adapt
    return settings is not None and settings.data not in (None, "text")
