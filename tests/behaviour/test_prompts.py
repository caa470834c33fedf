import json
from collections import Counter
from pathlib import Path

import pytest
from tiny_llama import tiny_llama

from configs.behaviour import BehaviourMargins, BehaviourSettings
from tasks.behaviour.chat import ChatTokenizer
from tasks.behaviour.error import BehaviourError
from tasks.behaviour.prompts import Message, embedded_prompts, prompts_of


def file_of(folder: Path, rows: list[object]) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), "utf-8")
    return path


def plain(count: int) -> list[object]:
    return [{"prompt": f"Question {i}?"} for i in range(count)]


def test_the_embedded_prompts_carry_every_interval() -> None:
    prompts = prompts_of(BehaviourSettings(margins=BehaviourMargins(max_format_loss=0.1)))

    assert len({prompt.text for prompt in prompts}) == len({prompt.id for prompt in prompts}) == 128
    assert set(Counter(prompt.cluster for prompt in prompts).values()) == {2}
    assert Counter(prompt.expects for prompt in prompts) == {
        None: 64, "json": 16, "number": 16, "word": 16, "list": 16,
    }  # fmt: skip
    assert not any("{x}" in prompt.text for prompt in prompts)
    assert prompts == embedded_prompts()


def test_a_file_of_prompts_and_chats(tmp_path: Path) -> None:
    chat = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "Red"},
        {"role": "user", "content": "Another."},
    ]
    rows = [{"messages": chat, "id": "colour", "expects": "word"}, "", *plain(60)]
    prompts = prompts_of(BehaviourSettings(prompts=str(file_of(tmp_path, rows))))

    assert len(prompts) == 61
    assert (prompts[0].id, prompts[0].text, prompts[0].expects) == ("colour", "Another.", "word")
    assert prompts[0].transcript.startswith("system: Be short.\n\nuser: Name a colour.")
    assert (prompts[1].id, prompts[1].transcript, prompts[1].cluster) == ("line 3", "Question 0?", "line 3")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 2: not JSON"),
        ({"text": "a"}, "line 2: a row is an object with either 'prompt' or 'messages'"),
        ({"prompt": "a", "messages": []}, "line 2: a row is an object with either"),
        ({"prompt": " "}, "line 2, prompt: must be a text"),
        ({"prompt": "a", "answer": "b"}, "line 2, answer: unknown field"),
        ({"prompt": "a", "expects": "xml"}, "line 2, expects: 'xml'; must be one of json"),
        ({"prompt": "a", "id": 3}, "line 2, id: must be a text"),
        ({"prompt": "a", "id": "line 1"}, "line 2, id: 'line 1' occurs twice"),
        ({"messages": []}, "line 2, messages: must be a list"),
        ({"messages": [{"role": "user"}]}, r"line 2, messages\[0\]: must be an object"),
        ({"messages": [{"role": "me", "content": "a"}]}, r"line 2, messages\[0\].role: 'me'"),
        ({"messages": [{"role": "user", "content": ""}]}, r"messages\[0\].content: must be a text"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "the last one must be the user's"),
    ],
)
def test_errors_name_file_line_and_field(tmp_path: Path, row: object, message: str) -> None:
    path = file_of(tmp_path, [{"prompt": "first"}, row, *plain(60)])

    with pytest.raises(BehaviourError, match=message) as caught:
        prompts_of(BehaviourSettings(prompts=str(path)))
    assert str(path) in str(caught.value)


def test_too_few_prompts_are_refused_before_anything_is_generated(tmp_path: Path) -> None:
    few = file_of(tmp_path, plain(59))
    with pytest.raises(BehaviourError, match="59 prompts in 59 clusters; an interval needs 60"):
        prompts_of(BehaviourSettings(prompts=str(few)))

    uneven = [{"prompt": f"a {i}", "cluster": "one"} for i in range(300)] + plain(70)
    with pytest.raises(BehaviourError, match="worth 2 equal ones"):
        prompts_of(BehaviourSettings(prompts=str(file_of(tmp_path, uneven))))


def test_missing_files_and_margins_that_cannot_be_judged(tmp_path: Path) -> None:
    with pytest.raises(BehaviourError, match="give 'embedded' or the path"):
        prompts_of(BehaviourSettings(prompts=str(tmp_path / "none.jsonl")))

    settings = BehaviourSettings(
        prompts=str(file_of(tmp_path, plain(60))), margins=BehaviourMargins(max_format_loss=0.1)
    )
    with pytest.raises(BehaviourError, match="max_format_loss is set and no prompt"):
        prompts_of(settings)


def test_a_tokenizer_without_a_template_takes_plain_prompts_only(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer(tiny_llama(tmp_path / "tiny").folder)
    hello = Message(role="user", content="the keys")

    assert not tokenizer.has_template
    assert tokenizer.decode(tokenizer.encode([hello])) == "the keys"
    with pytest.raises(BehaviourError, match="no chat template and a prompt has 2 messages"):
        tokenizer.encode([Message(role="system", content="Be short."), hello])


def test_a_chat_template_is_applied_up_to_where_the_answer_begins(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = tiny_llama(tmp_path / "tiny").folder
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    (folder / "chat_template.jinja").write_text(template)
    tokenizer = ChatTokenizer(folder)
    ids = tokenizer.encode([Message(role="user", content="the keys")])

    assert tokenizer.decode(ids) == "user: the keysassistant:"
    reference = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [{"role": "user", "content": "the keys"}], add_generation_prompt=True, return_dict=False
    )
    assert list(ids) == list(reference)
    assert ids.count(1) == 1  # the template's </s> is the special token, not its letters
    assert tokenizer.ends(1)
    assert not tokenizer.ends(ids[0])
