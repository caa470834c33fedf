"""A model's chat template: from messages to the text that is trained on."""

from pathlib import Path

from tasks.data.training_rows import Chat, ChatTemplate, DataError
from tasks.training.checkpoint import load_tokenizer


def chat_template_of(checkpoint: Path) -> ChatTemplate:
    """The template of a checkpoint's tokenizer; the tokenizer is loaded when the first messages come."""
    tokenizer = None

    def apply(messages: Chat) -> str:
        nonlocal tokenizer
        tokenizer = tokenizer or load_tokenizer(checkpoint)
        if tokenizer.chat_template is None:
            raise DataError(
                "adapt.data has messages, and this model's tokenizer has no chat template; give `text` rows"
            )
        return str(tokenizer.apply_chat_template(messages, tokenize=False))

    return apply
