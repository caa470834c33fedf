"""The tokenizer of an artifact, read with `tokenizers` alone: no torch, no transformers."""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from tasks.quality.quality_error import QualityError


class TextTokenizer:
    """Text to token ids and back, by the `tokenizer.json` of a folder.

    Attributes:
        eos_id: the end-of-text token.
        prefix_id: what stands before a text that has no context: BOS where the model has one, else EOS (the
            rule of lm-eval's hf model).
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise QualityError(
                f"{folder} has no tokenizer.json; save the model's fast tokenizer beside the weights"
            )
        self._tokenizer = _parsed(path.read_bytes())
        bos, eos = _special_tokens(folder, self._tokenizer)
        if eos is None and bos is None:
            raise QualityError(
                f"{folder}: neither tokenizer_config.json nor config.json names a BOS or EOS token"
            )
        self.eos_id: int = eos if eos is not None else bos  # type: ignore[assignment]
        self.prefix_id: int = bos if bos is not None else self.eos_id
        self._prefix_text = self.decode([self.prefix_id], skip_special_tokens=False)

    def encode(self, text: str, add_special_tokens: bool | None = None) -> list[int]:
        """Token ids. None: special tokens as the tokenizer's template has them, unless the text starts so."""
        if add_special_tokens is None:
            add_special_tokens = not (self._prefix_text and text.startswith(self._prefix_text))
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))


@lru_cache(maxsize=2)
def _parsed(definition: bytes) -> Tokenizer:
    """A tokenizer by what stands in its file, which takes 0.2 s to parse; every artifact of a model has the same."""
    tokenizer = Tokenizer.from_buffer(definition)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _special_tokens(folder: Path, tokenizer: Tokenizer) -> tuple[int | None, int | None]:
    """(BOS, EOS) ids: the names in tokenizer_config.json, else the ids in config.json."""
    names, ids = (
        json.loads(path.read_text(encoding="utf-8")) if (path := folder / name).is_file() else {}
        for name in ("tokenizer_config.json", "config.json")
    )
    found: list[int | None] = []
    for kind in ("bos", "eos"):
        token = names.get(f"{kind}_token")
        text = token.get("content") if isinstance(token, dict) else token
        number = tokenizer.token_to_id(text) if text else ids.get(f"{kind}_token_id")
        found.append(number[0] if isinstance(number, list) else number)
    return found[0], found[1]
