from pathlib import Path

import pytest
import torch
from tiny_llama import EOS, TEXTS, tiny_llama

from tasks.training.checkpoint import head_weight, last_hidden, load_model, load_tokenizer
from tasks.training.error import TrainingError
from tasks.training.packing import pack


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny")).folder


def test_sequences_are_the_documents_in_order_with_one_eos_before_each(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    text = pack(TEXTS, tokenizer, sequence_tokens=32, count=6, seed=1)

    assert text.tokens.shape == (6, 33)
    assert torch.equal(
        text.tokens[:-1, -1], text.tokens[1:, 0]
    )  # the last target is the next one's first input
    stream = torch.cat([text.tokens[0, :1], *(row[1:] for row in text.tokens)]).tolist()
    documents = tokenizer.decode(stream).split("</s>")[1:]
    assert set(documents[:-1]) <= set(TEXTS)
    assert len(set(documents)) == len(documents)


def test_positions_restart_at_each_document_and_sequence(folder: Path) -> None:
    text = pack(TEXTS, load_tokenizer(folder), sequence_tokens=32, count=6, seed=1)

    for tokens, positions in zip(text.tokens[:, :-1].tolist(), text.positions.tolist(), strict=True):
        expected = 0
        for token, position in zip(tokens, positions, strict=True):
            expected = 0 if token == EOS else expected
            assert position == expected
            expected += 1


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
    with pytest.raises(TrainingError, match=r"sequence_tokens is 5000, the training text has \d+ tokens"):
        pack(TEXTS, load_tokenizer(folder), sequence_tokens=5000, count=1, seed=0)
    with pytest.raises(TrainingError, match="has 0 tokens"):
        pack((), load_tokenizer(folder), sequence_tokens=16, count=1, seed=0)
