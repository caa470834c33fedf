"""Fixtures of the model sources."""

from pathlib import Path
from typing import NamedTuple

import pytest
from gguf_tiny import write_tiny_gguf
from tokenizers import Tokenizer


class TinyGguf(NamedTuple):
    path: Path
    tokenizer: Tokenizer


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> TinyGguf:
    """A tiny Llama with SmolLM2's kind of tokenizer."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return TinyGguf(path, write_tiny_gguf(path))
