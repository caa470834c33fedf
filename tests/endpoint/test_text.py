"""From tokens to text and from requests to prompts: properties, and transformers as the reference."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parrot_engine import TEMPLATE, byte_folder
from tokenizers import Tokenizer

from tasks.endpoint.api_error import ApiError
from tasks.endpoint.detokenize import Detokenizer
from tasks.endpoint.openai_api import ChatMessage
from tasks.endpoint.prompt_text import PromptText
from tasks.endpoint.stop_strings import StopStrings
from tasks.quality.tokenizer import TextTokenizer


@pytest.fixture(scope="module")
def text(parrot_folder: Path) -> TextTokenizer:
    return TextTokenizer(parrot_folder)


@settings(deadline=None, max_examples=30)
@given(said=st.text(max_size=30), cuts=st.lists(st.integers(1, 5), min_size=1))
def test_pieces_join_to_the_text_and_no_character_is_split(
    text: TextTokenizer, said: str, cuts: list[int]
) -> None:
    ids = text.encode(said)
    detokenizer = Detokenizer(text.decode)
    pieces, at = [], 0
    while at < len(ids):
        size = cuts[len(pieces) % len(cuts)]
        pieces.append(detokenizer.feed(ids[at : at + size]))
        at += size
    if "\ufffd" not in said:
        assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + detokenizer.flush() == text.decode(ids)


@settings(deadline=None, max_examples=30)
@given(ids=st.lists(st.integers(0, 257), max_size=30))
def test_bytes_that_are_no_text_are_not_lost(text: TextTokenizer, ids: list[int]) -> None:
    detokenizer = Detokenizer(text.decode)
    pieces = [detokenizer.feed([each]) for each in ids]
    assert "".join(pieces) + detokenizer.flush() == text.decode(ids)


@settings(deadline=None, max_examples=30)
@given(
    said=st.text("ab ", max_size=20),
    stops=st.lists(st.text("ab ", min_size=1, max_size=4), min_size=1, max_size=4),
    cuts=st.lists(st.integers(1, 5), min_size=1),
)
def test_stop_strings_do_not_depend_on_how_the_text_is_cut(
    said: str, stops: list[str], cuts: list[int]
) -> None:
    ends = [(at + len(stop), at) for stop in stops if (at := said.find(stop)) >= 0]
    expected = said[: min(ends)[1]] if ends else said
    watch, sent, at, turn = StopStrings(stops), "", 0, 0
    while at < len(said) and not watch.matched:
        size = cuts[turn % len(cuts)]
        sent += watch.feed(said[at : at + size])
        assert expected.startswith(sent)  # nothing goes out that has to be taken back
        at, turn = at + size, turn + 1
    assert sent + watch.flush() == expected
    assert watch.matched == bool(ends)


TEMPLATES = {
    "loops": (
        "{{ bos_token }}{% for message in messages %}\n    {% if loop.index0 > 3 %}{% break %}{% endif %}"
        "<{{ message['role'] }}>{{ message['content'] | trim }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    ),
    "json": "{{ messages | tojson(indent=1) }}{% generation %}said{% endgeneration %}",
    "parrot": TEMPLATE,
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_render_as_in_transformers(tmp_path: Path, name: str) -> None:
    from transformers import AutoTokenizer

    folder = byte_folder(tmp_path / "model", TEMPLATES[name])
    turns = [("system", " be <brief> & 'kind' "), ("user", "軽量?"), ("assistant", "yes"), ("user", "more\n")]
    messages = [{"role": role, "content": content} for role, content in turns]
    expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    ids = PromptText(folder).encode_chat([ChatMessage.model_validate(each) for each in messages])
    assert (
        Tokenizer.from_file(str(folder / "tokenizer.json")).decode(ids, skip_special_tokens=False) == expected
    )


def test_a_template_file_goes_before_the_settings_entry(tmp_path: Path) -> None:
    folder = byte_folder(tmp_path)
    (folder / "chat_template.jinja").write_text("file:{{ messages[0].content }}")
    message = [ChatMessage(role="user", content="x")]
    text = PromptText(folder)
    assert text.decode(text.encode_chat(message)) == "file:x"
    (folder / "chat_template.jinja").unlink()
    settings_file = folder / "tokenizer_config.json"
    values = json.loads(settings_file.read_text())
    settings_file.write_text(json.dumps(values | {"chat_template": [{"name": "default", "template": "one"}]}))
    text = PromptText(folder)
    assert text.decode(text.encode_chat(message)) == "one"


def test_a_model_without_a_template_has_no_chat(tmp_path: Path) -> None:
    text = PromptText(byte_folder(tmp_path, template=None))
    with pytest.raises(ApiError, match="/v1/completions"):
        text.encode_chat([ChatMessage(role="user", content="x")])


def test_a_template_cannot_reach_out_of_its_sandbox(tmp_path: Path) -> None:
    text = PromptText(byte_folder(tmp_path, "{{ ''.__class__.__mro__ }}"))
    with pytest.raises(ApiError, match="unsafe"):
        text.encode_chat([ChatMessage(role="user", content="x")])
