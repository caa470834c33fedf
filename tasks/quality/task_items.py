"""Are the items of a task whole? Read off its documents and its templates, before anything is asked.

lm-eval fills a field that a row lacks with None when another row has it, and a template then asks about
"None" without a word.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jinja2 import Environment, TemplateSyntaxError, meta, nodes

from tasks.quality.quality_error import QualityError


def check_fields(
    task: str, docs: Iterable[tuple[int, Mapping[str, Any]]], settings: Sequence[object]
) -> None:
    """Refuse documents that lack a field which the task's settings write into the prompt or the answer.

    Args:
        task: name.
        docs: documents that will be asked, with their numbers.
        settings: the task's doc_to_text, doc_to_choice, doc_to_target; what is not a text is left alone.

    Raises:
        QualityError: a field is missing or null; the message names task, item and field.
    """
    templates = [setting for setting in settings if isinstance(setting, str)]
    fields: set[str] | None = None
    for item, doc in docs:
        if fields is None:
            fields = {name for template in templates for name in _fields(task, template, doc)}
        missing = sorted(field for field in fields if doc.get(field) is None)
        if missing:
            raise QualityError(
                f"task {task}, item {item}: field {missing[0]!r} is missing; its YAML names it"
            )


def check_ids(task: str, ids: Iterable[object]) -> None:
    """Refuse a task in which two documents have one `id`: the same item would count twice.

    Raises:
        QualityError: the message names task, items and id.
    """
    first: dict[str, int] = {}
    for item, name in enumerate(ids):
        if name is not None and first.setdefault(str(name), item) != item:
            raise QualityError(
                f"task {task}: items {first[str(name)]} and {item} have the same id {str(name)!r}; an item may "
                "stand only once"
            )


def _fields(task: str, template: str, doc: Mapping[str, Any]) -> set[str]:
    """The fields of a setting: it is the name of one, or a template that writes some.

    A field that the template tests (`{% if hint %}`) may be absent.
    """
    if template in doc or template.isidentifier():
        return {template}
    page = Environment(autoescape=False)  # prompts are no HTML
    try:
        tree = page.parse(template)
    except TemplateSyntaxError as error:
        raise QualityError(f"task {task}: template {template!r} cannot be parsed: {error}") from error
    written = {name.name for out in tree.find_all(nodes.Output) for name in out.find_all(nodes.Name)}
    tests: list[nodes.Node] = [node.test for node in tree.find_all(nodes.If)]
    tests += [node.test for node in tree.find_all(nodes.CondExpr)]
    tested = {test.name for test in tests if isinstance(test, nodes.Name)}
    tested |= {name.name for test in tests for name in test.find_all(nodes.Name)}
    return (written & meta.find_undeclared_variables(tree)) - tested - page.globals.keys()
