"""The training rows that `adapt.data` names, and the check that they do not repeat what the gate judges on."""

from configs.training import DatasetSource
from tasks.data.leakage import leaks
from tasks.data.training_rows import DataError, TrainingRow, name_of, read_rows
from tasks.release.gate_tasks import judged_tasks, task_set
from tasks.release.workspace import Workspace
from tasks.store.digest import code_digest, digest_of
from tasks.store.record import Record

TRAIN_PART = "the train part of quality.text"


class Leakage(Record):
    """What was found.

    Attributes:
        rows: training rows that repeat an item of the gate.
        example: the first of them, in words; "" where there is none.
    """

    rows: int
    example: str


def training_rows(workspace: Workspace) -> tuple[TrainingRow, ...]:
    """The rows that `adapt.data` names: of its file or dataset, or the train part of the rollout's text.

    Raises:
        DataError: the file cannot be read, a row breaks the rule, or there are none.
    """
    if (source := _source(workspace)) is None:
        return tuple(TrainingRow(i, s.text) for i, s in enumerate(workspace.splits.train, start=1))
    return read_rows(source)


def rows_digest(workspace: Workspace) -> str | None:
    """Of the user's rows, by content; None where the rollout trains on its own text, which its digest covers."""
    if _source(workspace) is None:
        return None
    return digest_of([row.content for row in training_rows(workspace)])


def source_name(workspace: Workspace) -> str:
    """What the training rows come from, in words."""
    source = _source(workspace)
    return TRAIN_PART if source is None else name_of(source)


def search_texts(workspace: Workspace) -> tuple[str, ...]:
    """What early stopping draws its sequences from: the search split, and all else that search items may be cut from.

    On the four short sections of a small recipe alone chance decides which state is kept (docs/log.md).
    """
    return tuple(section.text for section in (*workspace.splits.search, *workspace.splits.tasks_search))


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
    """Leaked rows of the user's data under the name of the MLflow contract; the rollout's own text is disjoint by topic."""
    if _source(workspace) is None:
        return {}
    return {"train/leaked_rows": float(training_leakage(workspace).rows)}


def check_training_data(workspace: Workspace) -> None:
    """Read the user's training rows and refuse those that the gate would judge on, before anything runs.

    Raises:
        DataError: the message names the file, the line and the rule.
        QualityError: a task that is unknown, broken or empty.
    """
    settings, source = workspace.config.adapt, _source(workspace)
    if settings is None or source is None:
        return
    leakage = training_leakage(workspace)
    if leakage.rows and not settings.allow_leakage:
        raise DataError(
            f"adapt.data: {name_of(source)}: {leakage.rows} row(s) repeat items that the gate judges on; {leakage.example}; "
            "take them out, or set adapt.allow_leakage: true"
        )


def _source(workspace: Workspace) -> str | DatasetSource | None:
    """A file or dataset of the user; None where the rollout trains on its own text."""
    settings = workspace.config.adapt
    return None if settings is None or settings.data == "text" else settings.data
