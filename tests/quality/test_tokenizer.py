"""The tokenizer of a folder, read once."""

import shutil
from pathlib import Path

from tasks.quality.tokenizer import TextTokenizer


def test_a_file_is_parsed_once_and_anew_where_it_changed(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Parsing takes 0.2 s, and a verdict asks for it at every look."""
    for path in tiny_checkpoint.glob("*.json"):
        shutil.copy(path, tmp_path)
    first, copied = TextTokenizer(tiny_checkpoint), TextTokenizer(tmp_path)
    assert first._tokenizer is copied._tokenizer
    path = tmp_path / "tokenizer.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(f"{text}\n", encoding="utf-8")
    changed = TextTokenizer(tmp_path)
    assert changed._tokenizer is not first._tokenizer
    assert changed.encode("The same words.") == first.encode("The same words.")
