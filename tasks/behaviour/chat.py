"""A chat as the text that a model expects: by the tokenizer's own template where the folder has one."""

import json
from collections.abc import Sequence
from pathlib import Path

from tasks.behaviour.error import BehaviourError
from tasks.behaviour.prompts import Message
from tasks.quality.tokenizer import TextTokenizer


class ChatTokenizer:
    """Chats to token ids, and ids back to text.

    Attributes:
        has_template: whether the folder has a chat template; without one, only plain prompts can be asked.
    """

    def __init__(self, folder: Path) -> None:
        self.has_template = _has_template(folder)
        self._folder = folder
        self._text = TextTokenizer(folder)
        self._renderer = None
        if self.has_template:
            # Here, not above: a run that finds its answers in the store must not import transformers.
            from transformers import AutoTokenizer

            self._renderer = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def encode(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Token ids up to where the answer begins.

        Raises:
            BehaviourError: there is no template and the chat is more than one user message.
        """
        if self._renderer is None:
            if len(messages) != 1:
                raise BehaviourError(
                    f"{self._folder} has no chat template and a prompt has {len(messages)} messages; "
                    "give plain 'prompt' rows, or a tokenizer with a chat template"
                )
            ids = self._text.encode(messages[0].content)
            return tuple(ids or [self._text.prefix_id])
        text = self._renderer.apply_chat_template(
            [message.model_dump() for message in messages], tokenize=False, add_generation_prompt=True
        )
        return tuple(self._text.encode(str(text), add_special_tokens=False))  # the template has them

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""
        return self._text.decode(ids)

    def ends(self, token: int) -> bool:
        """Whether a token is a special one, so that an answer which ends in it was not cut off."""
        return token == self._text.eos_id or not self._text.decode([token])


def _has_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file():
        return True
    config = folder / "tokenizer_config.json"
    return config.is_file() and bool(json.loads(config.read_text(encoding="utf-8")).get("chat_template"))
