"""A request's prompt as token ids: plain text, token ids, or a chat by the model's own template.

The template is rendered with jinja2 in a sandbox, the way transformers does it: importing transformers for it would
hold 800 MiB beside a model of 130.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tasks.endpoint.api_error import ApiError
from tasks.endpoint.openai_api import ChatMessage
from tasks.quality.tokenizer import TextTokenizer


class _Generation(Extension):
    """`{% generation %}` marks the assistant's turns for training; here its body stands for itself."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class PromptText:
    """The tokenizer and the chat template of an artifact.

    Attributes:
        vocab_size: token ids are below it.
    """

    def __init__(self, folder: Path) -> None:
        """Read them.

        Raises:
            QualityError: the folder has no fast tokenizer.
        """
        self._tokenizer = TextTokenizer(folder)
        self.vocab_size = int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"])
        self._special = _special_tokens(folder)
        source = _template_source(folder)
        self._template = None if source is None else _environment().from_string(source)

    def encode(self, prompt: str | list[int] | list[str | list[int]]) -> tuple[int, ...]:
        """Token ids of a completion's prompt.

        Raises:
            ApiError: it is empty, or an id is outside the vocabulary.
        """
        one = prompt[0] if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else prompt
        if isinstance(one, str):
            return tuple(self._tokenizer.encode(one) or [self._tokenizer.prefix_id])
        ids = tuple(each for each in one if isinstance(each, int))
        if not ids:
            raise ApiError(400, "prompt: is empty; give a text or at least one token id", param="prompt")
        if wrong := [each for each in ids if not 0 <= each < self.vocab_size]:
            raise ApiError(
                400, f"prompt: {wrong[0]} is no token id; use 0 to {self.vocab_size - 1}", param="prompt"
            )
        return ids

    def encode_chat(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        """Token ids of a chat up to where the answer begins.

        Raises:
            ApiError: the model has no template, or its template refuses this chat.
        """
        if self._template is None:
            raise ApiError(400, "this model has no chat template; use /v1/completions", param="messages")
        turns = [
            {"role": "system" if each.role == "developer" else each.role, "content": each.text}
            for each in messages
        ]
        try:
            text = self._template.render(messages=turns, add_generation_prompt=True, **self._special)
        except TemplateError as error:
            raise ApiError(
                400, f"messages: the model's chat template refuses them: {error}", param="messages"
            ) from error
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))  # the template has them

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""
        return self._tokenizer.decode(ids)


def _template_source(folder: Path) -> str | None:
    """`chat_template.jinja`, else the entry of tokenizer_config.json."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = _settings(folder).get("chat_template")
    if isinstance(found, list):  # several, by name
        found = next((each["template"] for each in found if each["name"] == "default"), None)
    return found or None


def _special_tokens(folder: Path) -> dict[str, str]:
    """`bos_token` and the like, which templates use by name."""
    found = {}
    for name, value in _settings(folder).items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            found[name] = text
    return found


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _environment() -> ImmutableSandboxedEnvironment:
    """What templates on the hub are written for: `apply_chat_template` of transformers 5."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the HTML escapes of jinja2's own filter."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
