import json
from pathlib import Path

import pytest

from tasks.adaptation.data import Chat, DataError, training_texts


def template(messages: Chat) -> str:
    return "|".join(f"{message['role']}: {message['content']}" for message in messages)


def test_text_is_the_sections() -> None:
    assert training_texts("text", iter(["one", "two"]), template) == ("one", "two")


def test_rows_of_text_and_of_messages(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"text": "a"}) + "\n\n" + json.dumps({"messages": chat, "id": 7}) + "\n")
    assert training_texts(str(file), (), template) == ("a", "user: Hi|assistant: Hello")


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
        training_texts(str(file), (), template)
    assert str(file) in str(caught.value)


def test_missing_undecodable_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        training_texts(str(tmp_path / "none.jsonl"), (), template)
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"text": "\xff"}')
    with pytest.raises(DataError, match="byte 10 is not UTF-8"):
        training_texts(str(file), (), template)
    file.write_text("\n")
    with pytest.raises(DataError, match="has no rows"):
        training_texts(str(file), (), template)
