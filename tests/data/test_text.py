import json
from pathlib import Path

import pytest

from configs.quality import TextSettings
from tasks.data.prose import pydoc_topics, sections_of
from tasks.data.text import TextSplits, split_text
from tasks.data.text_error import TextError

SIDES = (("train",), ("calibration",), ("search", "tasks_search"), ("gate", "tasks_gate"))


def _topics(splits: TextSplits, side: tuple[str, ...]) -> set[str]:
    return {section.topic for name in side for section in getattr(splits, name)}


def test_pydoc_is_split_by_topic_into_parts_of_the_asked_size() -> None:
    settings = TextSettings()
    splits = split_text(settings, seed=3)
    assert len(splits.gate) == settings.gate_sections
    assert len(splits.search) == settings.search_sections
    assert len(splits.calibration) == settings.calibration_sections
    assert len(splits.train) > 100
    assert splits.by_topic
    for number, side in enumerate(SIDES):
        for other in SIDES[number + 1 :]:
            assert not _topics(splits, side) & _topics(splits, other)


def test_no_section_and_no_paragraph_stands_twice() -> None:
    splits = split_text(TextSettings(), seed=0)
    sections = [s for side in SIDES for name in side for s in getattr(splits, name)]
    assert len({section.id for section in sections}) == len(sections)
    paragraphs = [p for topic in pydoc_topics().values() for p in topic]
    assert len(set(paragraphs)) == len(paragraphs)
    assert max(len(section.text) for section in sections) <= TextSettings().section_characters


def test_pydoc_sections_are_prose() -> None:
    text = "\n".join(p for topic in pydoc_topics().values() for p in topic)
    assert "::=" not in text
    assert ">>>" not in text
    assert "*****" not in text
    assert "Assert statements are a convenient way to insert debugging assertions into a program" in text


def test_the_seed_decides_the_split_and_nothing_else_does() -> None:
    first, again, other = (split_text(TextSettings(), seed) for seed in (1, 1, 2))
    assert first == again
    assert first.digest != other.digest


def test_too_little_text_says_how_many_sections_there_are() -> None:
    with pytest.raises(TextError, match=r"pydoc has \d+ sections .* gate_sections \(5000\)"):
        split_text(TextSettings(gate_sections=5000), seed=0)


def _jsonl(path: Path, rows: list[object]) -> TextSettings:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return TextSettings(source=str(path), section_characters=200, calibration_sections=2, search_sections=2)


def test_jsonl_lines_are_topics_and_one_big_topic_is_split_by_section(tmp_path: Path) -> None:
    rows: list[object] = [{"text": f"Document {n} says that {n} is a number. " * 4} for n in range(90)]
    by_line = split_text(_jsonl(tmp_path / "lines.jsonl", rows), seed=0)
    assert by_line.by_topic
    whole = "\n\n".join(f"Paragraph {n} says that {n} is a number. " * 4 for n in range(90))
    one_topic = split_text(_jsonl(tmp_path / "one.jsonl", [{"text": whole, "topic": "all"}]), seed=0)
    assert not one_topic.by_topic
    assert len(one_topic.gate) == 60 + 4
    parts = [{s.text for s in getattr(one_topic, name)} for side in SIDES for name in side]
    assert len(set.union(*parts)) == sum(map(len, parts))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": 3}', r"bad\.jsonl:2: field 'text' must be a non-empty string, it is 3"),
        ('{"txet": "a"}', r"bad\.jsonl:2: field 'text' must be a non-empty string, it is None"),
        ('{"text": "a", "topic": 1}', r"bad\.jsonl:2: field 'topic'"),
        ("[1]", r"bad\.jsonl:2: must be an object"),
        ('{"text": ', r"bad\.jsonl:2: not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(TextError, match=message):
        split_text(TextSettings(source=str(path)), seed=0)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(TextError, match=r"no file nowhere\.jsonl"):
        split_text(TextSettings(source="nowhere.jsonl"), seed=0)


def test_long_paragraphs_are_cut_at_sentences_then_words_and_nothing_is_lost() -> None:
    paragraph = "One sentence here. " * 30 + "x" * 250
    sections = sections_of([paragraph], 100)
    assert all(len(section) <= 100 for section in sections)
    assert all(section.endswith("here.") for section in sections[:-3])
    assert "".join(sections).replace(" ", "").count("x") == 250
