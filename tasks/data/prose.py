"""Sources of text as topics of paragraphs, and paragraphs packed into sections.

`pydoc_data.topics` is the language reference of this Python as plain text: prose between grammar, code,
tables and headings. Only the prose is kept; a paragraph that stands in several topics is kept in the first.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from tasks.data.text_error import TextError

# Prose is letters and spaces; grammar, code and tables are brackets, colons and bars.
MIN_LETTER_FRACTION = 0.8
MIN_WORDS = 8
_NOT_PROSE = re.compile(r"::=|>>>|^[ \t]*[+|][-=|]|^\s*def |^\s*class |[*=~^-]{4,}", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")  # noqa: RUF001
# A rest shorter than this share of a section says little and would be a cluster of its own; it is dropped.
MIN_REST_FRACTION = 0.25


def pydoc_topics() -> dict[str, list[str]]:
    """Topic to its prose paragraphs, whitespace normalized, no paragraph twice."""
    from pydoc_data.topics import topics

    seen: set[str] = set()
    result: dict[str, list[str]] = {}
    for name in sorted(topics):
        paragraphs = []
        for raw in re.split(r"\n[ \t]*\n", topics[name]):
            paragraph = re.sub(r"^\* ", "", " ".join(raw.split()))
            if paragraph not in seen and _is_prose(raw, paragraph):
                seen.add(paragraph)
                paragraphs.append(paragraph)
        if paragraphs:
            result[name] = paragraphs
    return result


def jsonl_topics(source: str) -> dict[str, list[str]]:
    """Topic to paragraphs of a JSONL file: `text` is required, `topic` optional (else the line).

    Raises:
        TextError: names the file, the line and the field.
    """
    path = Path(source)
    if not path.is_file():
        raise TextError(
            f"quality.text.source: no file {source}; give 'pydoc' or a JSONL file with a field 'text'"
        )
    seen: set[str] = set()
    result: dict[str, list[str]] = {}
    for where, row in _rows(path):
        text, topic = row.get("text"), row.get("topic", where.rsplit(":", 1)[1])
        if not isinstance(text, str) or not text.strip():
            raise TextError(f"{where}: field 'text' must be a non-empty string, it is {text!r:.60}")
        if not isinstance(topic, str) or not topic:
            raise TextError(
                f"{where}: field 'topic' must be a non-empty string or left out, it is {topic!r:.60}"
            )
        for raw in re.split(r"\n[ \t]*\n", text):
            paragraph = " ".join(raw.split())
            if paragraph and paragraph not in seen:
                seen.add(paragraph)
                result.setdefault(topic, []).append(paragraph)
    if not result:
        raise TextError(f"quality.text.source: {source} has no text")
    return result


def sections_of(paragraphs: list[str], section_characters: int) -> list[str]:
    """Paragraphs packed into sections of at most `section_characters`; longer ones are cut at sentence ends.

    A short rest is dropped where the topic has other sections.
    """
    sections: list[str] = []
    for piece in (cut for paragraph in paragraphs for cut in _cut(paragraph, section_characters)):
        if sections and len(sections[-1]) + 2 + len(piece) <= section_characters:
            sections[-1] += "\n\n" + piece
        else:
            sections.append(piece)
    long_enough = [s for s in sections if len(s) >= MIN_REST_FRACTION * section_characters]
    return long_enough or sections[:1]


def _is_prose(raw: str, paragraph: str) -> bool:
    if _NOT_PROSE.search(raw) or len(paragraph.split()) < MIN_WORDS or paragraph[-1] not in ".:;!?)\"'":
        return False
    return sum(c.isalpha() or c == " " for c in paragraph) >= MIN_LETTER_FRACTION * len(paragraph)


def _cut(paragraph: str, limit: int) -> Iterator[str]:
    """The paragraph in pieces of at most `limit` characters, at sentence ends where it has them."""
    piece = ""
    for sentence in _SENTENCE_END.split(paragraph):
        if piece and len(piece) + 1 + len(sentence) > limit:
            yield piece
            piece = ""
        piece = f"{piece} {sentence}" if piece else sentence
        while len(piece) > limit:
            head = piece[:limit].rfind(" ") if " " in piece[1:limit] else limit
            yield piece[:head]
            piece = piece[head:].lstrip()
    if piece:
        yield piece


def _rows(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """("file:line", row) of every non-empty line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise TextError(f"{path}: not UTF-8 at byte {error.start}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise TextError(f"{path}:{number}: not JSON: {error.msg} at column {error.colno}") from error
        if not isinstance(row, dict):
            raise TextError(f"{path}:{number}: must be an object with a field 'text', it is {line[:60]!r}")
        yield f"{path}:{number}", row
