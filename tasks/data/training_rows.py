"""The rows of a JSONL training file or of a dataset, checked field by field.

Reading needs no model: a bad row is told before anything runs. The chat template of the model that is trained turns messages into text
later (`training_texts`).
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.training import DatasetSource
from tasks.data.lines import read_lines

Chat = list[dict[str, str]]
ChatTemplate = Callable[[Chat], str]


class DataError(ValueError):
    """A training file that is missing, malformed or not allowed: file, line, field and the rule. Bad input: exit code 2."""


@dataclass(frozen=True)
class TrainingRow:
    """One row.

    Attributes:
        line: its number in the file or dataset, from 1.
        content: its text, or its messages.
    """

    line: int
    content: str | Chat

    @property
    def plain(self) -> str:
        """Its words without a template: a message a line."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(message["content"] for message in self.content)


def read_rows(source: str | DatasetSource) -> tuple[TrainingRow, ...]:
    """Read and check rows that have `text`, or `messages` (a list of `{"role", "content"}`).

    Raises:
        DataError: the file or dataset cannot be read, a row breaks the rule, or there are no rows.
    """
    rows = tuple(_rows(Path(source)) if isinstance(source, str) else _dataset_rows(source))
    if not rows:
        raise DataError(f"adapt.data: {name_of(source)} has no rows; give at least one")
    return rows


def name_of(source: str | DatasetSource) -> str:
    """A source as messages name it."""
    return source if isinstance(source, str) else f"{source.dataset} ({source.split})"


def training_texts(rows: Sequence[TrainingRow], chat_template: ChatTemplate) -> tuple[str, ...]:
    """The documents to train on; `chat_template` turns messages into one text (the tokenizer's template)."""
    return tuple(row.content if isinstance(row.content, str) else chat_template(row.content) for row in rows)


def _rows(file: Path) -> Iterator[TrainingRow]:
    lines = read_lines(file, "adapt.data", "give 'text' or the path of a JSONL file", DataError)
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"adapt.data: {file}, line {number}"
            yield TrainingRow(number, _content(_parsed(line, where), where))


def _dataset_rows(source: DatasetSource) -> Iterator[TrainingRow]:
    """Data files alone: `datasets` runs no script of a repository any more."""
    import datasets

    where = f"adapt.data: dataset {name_of(source)}"
    try:
        rows = datasets.load_dataset(
            source.dataset, source.config, split=source.split, revision=source.revision
        )
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        # A RuntimeError is what huggingface_hub's closed client says when it tries an unreachable hub again.
        raise DataError(
            f"{where}: {' '.join(str(error).split())}; check dataset, config, split and revision"
        ) from error
    for number, row in enumerate(rows, start=1):
        known = {name: row[name] for name in ("text", "messages") if row.get(name) is not None}
        yield TrainingRow(number, _content(known, f"{where}, row {number}"))


def _parsed(line: str, where: str) -> object:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: not JSON ({error.msg} at column {error.colno}); one object a line"
        ) from error


def _content(row: object, where: str) -> str | Chat:
    if not isinstance(row, dict) or ("text" in row) == ("messages" in row):
        raise DataError(f"{where}: a row is an object with either 'text' or 'messages'")
    if "text" in row:
        return _non_empty(row["text"], f"{where}, text")
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where}, messages: must be a list of at least one message")
    return [_message(message, f"{where}, messages[{i}]") for i, message in enumerate(messages)]


def _message(message: object, where: str) -> dict[str, str]:
    if not isinstance(message, dict) or set(message) != {"role", "content"}:
        raise DataError(f"{where}: must be an object with 'role' and 'content' and nothing else")
    if message["role"] not in ("system", "user", "assistant"):
        raise DataError(f"{where}.role: {message['role']!r}; must be 'system', 'user' or 'assistant'")
    return {"role": message["role"], "content": _non_empty(message["content"], f"{where}.content")}


def _non_empty(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: must be a text that is not empty, got {value!r}")
    return value
