"""lm-eval's tasks by their names; what is wrong with one is said in a line.

Imported by `harness` alone, which sets what lm_eval reads from the environment first.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

import lm_eval.utils
from jinja2 import TemplateError
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from yaml import YAMLError

from tasks.engines.protocol import EngineError
from tasks.quality.few_shot import seed_examples
from tasks.quality.quality_error import QualityError

# What lm-eval lets through when it builds a task from a broken definition or from data that does not fit it.
TASK_FAULTS = (TemplateError, ValueError, LookupError, TypeError, AttributeError, OSError)

# lm-eval compiles a task's templates anew for every field of every item: a sixth of the time of an item of ARC-easy.
lm_eval.utils.env.from_string = lru_cache(maxsize=512)(lm_eval.utils.env.from_string)


def load_tasks(names: Sequence[str], include: Path | None) -> dict[str, Task]:
    """Load tasks, whose few-shot examples then depend on the seed and the item alone.

    Args:
        names: tasks, groups or tags.
        include: folder of task YAMLs; None: lm-eval's own tasks.

    Raises:
        QualityError: a task is unknown, or cannot be had or built.
    """
    manager = TaskManager(include_path=str(include) if include else None, include_defaults=include is None)
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        if include is not None:
            _check_definitions(include)
        near = get_close_matches(unknown[0], manager.all_tasks, n=3) or manager.all_tasks[:3]
        raise QualityError(
            f"quality.tasks.names: no task {unknown[0]} in {include or 'lm-eval'}; nearest: {', '.join(near)}"
        )
    tasks: dict[str, Task] = {}
    for name in names:
        try:
            tasks |= manager.load([name])["tasks"]
        except OSError as error:  # also every way in which the hub cannot be reached
            raise QualityError(
                f"task {name}: its data cannot be had ({one_line(error)}); a task of the hub needs the network "
                "once, or give quality.tasks.pack a folder that holds it"
            ) from error
        except TASK_FAULTS as error:
            raise QualityError(
                f"task {name} cannot be built: it has no items, or its items lack a field that its YAML "
                f"names ({one_line(error)})"
            ) from error
    for task in tasks.values():
        seed_examples(task)
    return tasks


def _check_definitions(folder: Path) -> None:
    """lm-eval skips a YAML that it cannot parse without a word; whoever looks for its task must hear of it."""
    for path in sorted(folder.rglob("*.yaml")):
        try:
            load_yaml(path, resolve_func=False)
        except (YAMLError, ValueError, OSError) as error:
            raise QualityError(f"{path}: not a task YAML ({one_line(error)})") from error


def one_line(error: BaseException) -> str:
    """What an error says, without line breaks; with its type where it is not one of ours."""
    text = " ".join(str(error).split())
    return text if isinstance(error, QualityError | EngineError) else f"{type(error).__name__}: {text}"
