"""The rows of a JSONL training file, checked field by field.

Reading needs no model: a bad row is told before anything runs. The chat template of the model that is trained turns messages into text
later (`training_texts`).
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

Chat = list[dict[str, str]]
ChatTemplate = Callable[[Chat], str]


class DataError(ValueError):
    """A training file that is missing, malformed or not allowed: file, line, field and the rule. Bad input: exit code 2."""


@dataclass(frozen=True)
class TrainingRow:
    """One row.

    Attributes:
        line: its number in the file, from 1.
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


def read_rows(file: Path) -> tuple[TrainingRow, ...]:
    """Read and check a file whose rows have `text`, or `messages` (a list of `{"role", "content"}`).

    Raises:
        DataError: the file cannot be read, a row breaks the rule, or there are no rows.
    """
    rows = tuple(_rows(file))
    if not rows:
        raise DataError(f"adapt.data: {file} has no rows; give at least one")
    return rows


def training_texts(rows: Sequence[TrainingRow], chat_template: ChatTemplate) -> tuple[str, ...]:
    """The documents to train on; `chat_template` turns messages into one text (the tokenizer's template)."""
    return tuple(row.content if isinstance(row.content, str) else chat_template(row.content) for row in rows)


def _rows(file: Path) -> Iterator[TrainingRow]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise DataError(
            f"adapt.data: {file}: {error.strerror}; give 'text' or the path of a JSONL file"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"adapt.data: {file}: byte {error.start} is not UTF-8; save the file as UTF-8"
        ) from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield TrainingRow(number, _content(line, f"adapt.data: {file}, line {number}"))


def _content(line: str, where: str) -> str | Chat:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: not JSON ({error.msg} at column {error.colno}); one object a line"
        ) from error
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
