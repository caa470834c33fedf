from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tiny_llama import EOS, TEXTS, tiny_llama

from tasks.training.checkpoint import head_weight, last_hidden, load_model, load_tokenizer
from tasks.training.error import TrainingError
from tasks.training.packing import pack

BOS = 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny")).folder


def test_what_fits_stands_whole_with_one_eos_before_it(folder: Path) -> None:
    """Each document once whole in a pass; what fills a sequence is the beginning of one whose turn comes late."""
    tokenizer = load_tokenizer(folder)
    longest = max(len(tokenizer(text)["input_ids"]) + 1 for text in TEXTS)
    text = pack(TEXTS, tokenizer, sequence_tokens=2 * longest + 7, count=12, seed=1)

    assert text.tokens.shape == (12, 2 * longest + 8)
    whole: list[str] = []
    for row in text.tokens:
        assert row[0] == EOS
        *documents, last = tokenizer.decode(row).split("</s>")[1:]
        whole += documents
        assert last in TEXTS or any(each.startswith(last) for each in TEXTS)
        whole += [last] if last in TEXTS else []
    assert set(whole) <= set(TEXTS)
    assert len(set(whole[: len(TEXTS)])) > 0.9 * len(
        TEXTS
    )  # a pass, but for what was taken ahead of its turn


def test_a_short_training_reads_nothing_twice(folder: Path) -> None:
    texts = [
        f"{a} {b} {c} the key is on the table in the {c}" for a in "abcdefgh" for b in "xyz" for c in "lmnop"
    ]
    text = pack(texts, load_tokenizer(folder), sequence_tokens=49, count=8, seed=1)

    beginnings = [
        tuple(part[:6].tolist())  # EOS and the three letters that no two texts share
        for row, positions in zip(text.tokens, text.positions, strict=True)
        for part in torch.tensor_split(row[:-1], (positions == 0).nonzero()[1:, 0])
        if len(part) >= 6
    ]
    assert len(beginnings) > 20
    assert len(set(beginnings)) == len(beginnings)


def test_a_document_longer_than_a_sequence_goes_on_in_the_next(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    ids = tokenizer(" ".join(TEXTS))["input_ids"]
    text = pack([" ".join(TEXTS)], tokenizer, sequence_tokens=32, count=3, seed=0)

    flat = torch.cat([text.tokens[0, :1], *(row[1:] for row in text.tokens)]).tolist()
    assert flat == [EOS, *ids][: len(flat)]
    assert torch.equal(text.tokens[:-1, -1], text.tokens[1:, 0])


def test_positions_restart_at_each_document_and_sequence(folder: Path) -> None:
    text = pack(TEXTS, load_tokenizer(folder), sequence_tokens=32, count=6, seed=1)

    for tokens, positions in zip(text.tokens[:, :-1].tolist(), text.positions.tolist(), strict=True):
        expected = 0
        for token, position in zip(tokens, positions, strict=True):
            expected = 0 if token == EOS else expected
            assert position == expected
            expected += 1


def test_the_turns_of_a_chat_are_one_document(folder: Path) -> None:
    """Chat templates end every turn with EOS: an answer has to see its question."""
    chats = [f"the key {a} </s> is on the {b}" for a in "abcd" for b in "xyz"]
    text = pack(chats, load_tokenizer(folder), sequence_tokens=48, count=3, seed=1)

    for tokens, positions in zip(text.tokens[:, :-1].tolist(), text.positions.tolist(), strict=True):
        starts = [index for index, position in enumerate(positions) if position == 0]
        ends = [index for index, token in enumerate(tokens) if token == EOS]
        assert starts == ends[::2]
        assert len(ends) > len(starts)


def test_a_chat_begins_as_the_server_sends_it(folder: Path) -> None:
    """A template opens with a special token of its own: nothing stands before it. A plain text beside it keeps both of its EOS."""
    tokenizer = load_tokenizer(folder)
    chats = [f"<s>the key {a} </s> is on the {b} </s>" for a in "abcd" for b in "xyz"]
    text = pack(chats, tokenizer, sequence_tokens=48, count=3, seed=1)
    for tokens, positions in zip(text.tokens[:, :-1].tolist(), text.positions.tolist(), strict=True):
        starts = [index for index, position in enumerate(positions) if position == 0]
        assert starts == [index for index, token in enumerate(tokens) if token == BOS]
        assert len(starts) > 1

    mixed = pack([*chats, *TEXTS], tokenizer, sequence_tokens=64, count=40, seed=1)
    followed = 0
    for row, positions in zip(mixed.tokens.tolist(), mixed.positions.tolist(), strict=True):
        starts = [index for index, position in enumerate(positions) if position == 0]
        for begin, end in pairwise(starts):
            plain = row[begin] == EOS
            assert plain or row[begin] == BOS
            followed += plain
            assert not plain or row[end - 1] == EOS
    assert followed > 20


def test_a_document_does_not_see_the_one_before_it(folder: Path) -> None:
    text = pack(TEXTS, load_tokenizer(folder), sequence_tokens=64, count=1, seed=0)
    start = (text.tokens[0, 1:-1] == EOS).nonzero()[0].item() + 1
    model = load_model(folder, torch.float32)
    with torch.no_grad():
        packed = last_hidden(model, text.tokens[:, :-1], text.positions)[start:]
        alone = last_hidden(model, text.tokens[:, start:-1], text.positions[:, start:])

    torch.testing.assert_close(packed @ head_weight(model).T, alone @ head_weight(model).T, atol=1e-4, rtol=0)


def test_passes_repeat_the_texts_in_another_order(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    tokens = sum(len(tokenizer(text)["input_ids"]) + 1 for text in TEXTS)
    text = pack(TEXTS, tokenizer, sequence_tokens=tokens - 1, count=2, seed=0)

    first, second = text.tokens.tolist()
    assert first != second
    assert abs(first.count(EOS) - len(TEXTS)) <= 1


def test_text_shorter_than_a_sequence_is_refused(folder: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"sequence_tokens of the training is 5000, its text has \d+ tokens"
    ):
        pack(TEXTS, load_tokenizer(folder), sequence_tokens=5000, count=1, seed=0)
    with pytest.raises(TrainingError, match="has 0 tokens"):
        pack((), load_tokenizer(folder), sequence_tokens=16, count=1, seed=0)
