"""Training texts: sections of the rollout's text, or the rows of a JSONL file."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

Chat = list[dict[str, str]]
ChatTemplate = Callable[[Chat], str]


class DataError(ValueError):
    """A training file that is missing or malformed: file, line, field and the rule."""


def training_texts(data: str, sections: Iterable[str], chat_template: ChatTemplate) -> tuple[str, ...]:
    """The documents to train on.

    Args:
        data: "text" for the sections, or the path of a JSONL file whose rows have `text`, or `messages` (a
            list of `{"role", "content"}`).
        sections: the train part of the rollout's text.
        chat_template: turns messages into one text (the tokenizer's template).

    Raises:
        DataError: the file cannot be read, a row breaks the rule, or there are no rows.
    """
    texts = tuple(sections) if data == "text" else tuple(_rows(Path(data), chat_template))
    if not texts:
        raise DataError(f"adapt.data: {data} has no rows; give at least one")
    return texts


def chat_template_of(tokenizer: Any) -> ChatTemplate:
    """A transformers tokenizer's chat template, as text."""

    def apply(messages: Chat) -> str:
        if tokenizer.chat_template is None:
            raise DataError(
                "adapt.data has messages, and this model's tokenizer has no chat template; give `text` rows"
            )
        return str(tokenizer.apply_chat_template(messages, tokenize=False))

    return apply


def _rows(file: Path, chat_template: ChatTemplate) -> Iterator[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
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
            yield _row(line, f"adapt.data: {file}, line {number}", chat_template)


def _row(line: str, where: str, chat_template: ChatTemplate) -> str:
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
    return chat_template([_message(message, f"{where}, messages[{i}]") for i, message in enumerate(messages)])


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
