"""Texts packed into sequences of one length, in which every token is real.

A document is EOS followed by its tokens, so the EOS that ends one document starts the next, as in scoring,
where EOS stands before a text. One that opens with a special token, as a chat does under its template, has its own beginning and is
left as the server will send it; the EOS that then is missing behind a plain text is added there. Positions restart at each document,
and at no EOS inside one: chat models end every turn with it. transformers derives the block-diagonal attention mask from that
(`find_packed_sequence_indices`), so no document sees another one. No padding, no
masked target.

A document that fits into a sequence stands whole in one: cut ones teach answers without their questions
(Ding et al., Fewer Truncations Improve Language Modeling, ICML 2024, arXiv:2404.10830). Where the next one does not fit, the
longest of the next LOOK_AHEAD that does goes first; where none does, the beginning of one whose turn comes last, or not at all in a
short training, fills the sequence.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

from tasks.training.error import TrainingError

if TYPE_CHECKING:
    from torch import Tensor


MOST_HELD_OUT = 16
LOOK_AHEAD = 256


@dataclass(frozen=True)
class PackedText:
    """Sequences in the order in which they are trained on.

    Attributes:
        tokens: ids, int64, shape (N, T + 1): inputs are the first T, targets the last T.
        positions: position of each input in its document, int64, shape (N, T).
    """

    tokens: "Tensor"
    positions: "Tensor"


def pack(texts: Sequence[str], tokenizer: Any, sequence_tokens: int, count: int, seed: int) -> PackedText:
    """Cut `count` sequences out of the texts, shuffled anew for each pass over them.

    Args:
        texts: documents.
        tokenizer: a transformers tokenizer with an EOS token.
        sequence_tokens: T, targets of a sequence.
        count: N.
        seed: of the shuffles.

    Raises:
        TrainingError: the texts together are shorter than one sequence.
    """
    import torch

    documents = _documents(texts, tokenizer)
    available = sum(map(len, documents))
    if available <= sequence_tokens:
        raise TrainingError(
            f"sequence_tokens of the training is {sequence_tokens}, its text has {available} tokens; "
            "it must have more; give more text or shorten the sequences"
        )
    rows = list(
        islice(
            _sequences(documents, sequence_tokens + 1, random.Random(f"{seed}:packing")),
            count,
        )
    )
    return PackedText(
        torch.tensor([row.tokens for row in rows]), torch.tensor([row.positions[:-1] for row in rows])
    )


def pack_held_out(texts: Sequence[str], tokenizer: Any, sequence_tokens: int) -> PackedText | None:
    """About each token of held-out texts once, in at most MOST_HELD_OUT sequences; None where they do not fill one.

    Args:
        texts: documents.
        tokenizer: see `pack`.
        sequence_tokens: T, targets of a sequence.
    """
    available = sum(map(len, _documents(texts, tokenizer)))
    count = min(MOST_HELD_OUT, (available - 1) // sequence_tokens)
    return pack(texts, tokenizer, sequence_tokens, count, seed=0) if count > 0 else None


@dataclass
class _Row:
    """A sequence that is being filled; positions are counted, since EOS may stand inside a document (the turns of a chat)."""

    tokens: list[int]
    positions: list[int]

    def add(self, ids: list[int]) -> None:
        self.tokens += ids
        self.positions += range(len(ids))


def _documents(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Each text's tokens with the EOS that it needs."""
    eos, special = tokenizer.eos_token_id, frozenset(tokenizer.all_special_ids)
    tokens = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    has_own_beginning = [bool(ids) and ids[0] in special for ids in tokens]
    end = [eos] if any(has_own_beginning) else []  # else the next document begins with it
    return [
        ids if own else [eos, *ids, *end] for ids, own in zip(tokens, has_own_beginning, strict=True) if ids
    ]


def _sequences(documents: list[list[int]], length: int, rng: random.Random) -> Iterator[_Row]:
    """Sequences of `length` tokens without end: the documents in a new random order in each pass."""
    order = list(documents)
    rng.shuffle(order)
    fillers, coming = cycle(order[::-1]), _passes(order, rng)
    ahead = [next(coming) for _ in range(min(LOOK_AHEAD, len(documents)))]
    while True:
        row = _Row([], [])
        while room := length - len(row.tokens):
            fitting = [index for index, ids in enumerate(ahead) if len(ids) <= room]
            if fitting:
                chosen = 0 if fitting[0] == 0 else max(fitting, key=lambda index: len(ahead[index]))
                row.add(ahead.pop(chosen))
                ahead.append(next(coming))
            elif len(ahead[0]) > length:
                # It fits nowhere: its last target here is its first input in the next one.
                row.add(ahead[0][:room])
                ahead[0] = ahead[0][room - 1 :]
            else:
                row.add(next(fillers)[:room])
        yield row


def _passes(order: list[list[int]], rng: random.Random) -> Iterator[list[int]]:
    order = list(order)
    while True:
        yield from map(list, order)
        rng.shuffle(order)
