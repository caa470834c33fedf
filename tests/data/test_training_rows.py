import json
from pathlib import Path

import pytest

from configs.training import DatasetSource
from tasks.data.training_rows import Chat, DataError, read_rows, training_texts


def template(messages: Chat) -> str:
    return "|".join(f"{message['role']}: {message['content']}" for message in messages)


def test_rows_of_text_and_of_messages(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"text": "a"}) + "\n\n" + json.dumps({"messages": chat, "id": 7}) + "\n")
    rows = read_rows(str(file))
    assert training_texts(rows, template) == ("a", "user: Hi|assistant: Hello")
    assert [(row.line, row.plain) for row in rows] == [(1, "a"), (3, "Hi\nHello")]


def test_a_line_separator_inside_a_text_ends_no_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "one\u2028two"}\n', encoding="utf-8")
    assert training_texts(read_rows(str(file)), template) == ("one\u2028two",)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: a row is an object with either 'text' or 'messages'"),
        ('{"texts": "a"}', "line 2: a row is an object with either"),
        ('{"text": "a", "messages": []}', "line 2: a row is an object with either"),
        ('{"text": 5}', "line 2, text: must be a text that is not empty, got 5"),
        ('{"text": " "}', "line 2, text: must be a text that is not empty"),
        ('{"messages": []}', "line 2, messages: must be a list"),
        (
            '{"messages": [{"role": "user"}]}',
            r"line 2, messages\[0\]: must be an object with 'role' and 'content'",
        ),
        ('{"messages": [{"role": "bot", "content": "a"}]}', r"line 2, messages\[0\].role: 'bot'; must be"),
        ('{"messages": [{"role": "user", "content": ""}]}', r"line 2, messages\[0\].content: must be a text"),
    ],
)
def test_a_broken_row_is_named(row: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "fine"}\n' + row + "\n")
    with pytest.raises(DataError, match=message) as caught:
        read_rows(str(file))
    assert str(file) in str(caught.value)


def test_missing_undecodable_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_rows(str(tmp_path / "none.jsonl"))
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"text": "\xff"}')
    with pytest.raises(DataError, match="byte 10 is not UTF-8"):
        read_rows(str(file))
    file.write_text("\n")
    with pytest.raises(DataError, match="has no rows"):
        read_rows(str(file))


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder as the hub holds one: Parquet files, a split each."""
    import datasets
    import pyarrow as pa
    from pyarrow import parquet

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "rows"
    folder.mkdir()
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    rows = {"text": ["a", None], "messages": [None, chat]}
    parquet.write_table(pa.table(rows), folder / "train.parquet")
    parquet.write_table(pa.table({"text": ["a", ""], "messages": [None, chat]}), folder / "test.parquet")
    return str(folder)


def test_rows_of_a_dataset(dataset: str) -> None:
    rows = read_rows(DatasetSource(dataset=dataset))
    assert training_texts(rows, template) == ("a", "user: Hi|assistant: Hello")
    assert read_rows(DatasetSource(dataset=dataset, split="train[:1]")) == rows[:1]


def test_a_bad_row_of_a_dataset_is_named(dataset: str) -> None:
    with pytest.raises(DataError, match=r"rows \(test\), row 2: a row is an object with either"):
        read_rows(DatasetSource(dataset=dataset, split="test"))


def test_a_split_that_is_not_there_is_one_line(dataset: str) -> None:
    with pytest.raises(DataError, match=r'rows \(dev\): .*"dev".*; check dataset, config, split') as refusal:
        read_rows(DatasetSource(dataset=dataset, split="dev"))
    assert "\n" not in str(refusal.value)


def test_a_dataset_that_cannot_be_reached_is_one_line() -> None:
    with pytest.raises(DataError, match=r"dataset nobody/nothing \(train\): .*check dataset, config, split"):
        read_rows(DatasetSource(dataset="nobody/nothing"))
