"""Token ids to text as they come, without ever splitting a character.

A token may hold a part of a character's bytes, and what a token decodes to may depend on the one before it (the
blank of a SentencePiece word). So a piece is decoded together with the tokens of the piece before, and text that
ends in the replacement character waits for its missing bytes. What comes out, joined, is what decoding all tokens at
once gives.
"""

from collections.abc import Callable, Sequence

_INCOMPLETE = "\ufffd"


class Detokenizer:
    """The text of one completion."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        """Take the tokenizer's decoding of a list of ids, special tokens left out."""
        self._decode = decode
        self._before: list[int] = []  # of the piece that went out last
        self._held: list[int] = []

    def feed(self, tokens: Sequence[int]) -> str:
        """The text that is certain now."""
        self._held += tokens
        text = self._new_text()
        if not text or text.endswith(_INCOMPLETE):
            return ""
        self._before, self._held = self._held, []
        return text

    def flush(self) -> str:
        """What was still held back: bytes that never became a character."""
        text = self._new_text()
        self._held = []
        return text

    def _new_text(self) -> str:
        known = self._decode(self._before) if self._before else ""
        return self._decode([*self._before, *self._held])[len(known) :]
