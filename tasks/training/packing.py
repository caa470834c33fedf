"""Texts packed into sequences of one length, in which every token is real.

A document is EOS followed by its tokens, so the EOS that ends one document starts the next, as in scoring,
where EOS stands before a text. Positions restart at each EOS; transformers derives the block-diagonal
attention mask from that (`find_packed_sequence_indices`), so no document sees another one. No padding, no
masked target.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.training.error import TrainingError

if TYPE_CHECKING:
    from torch import Tensor


MOST_HELD_OUT = 16


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

    documents = (
        [ids for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"] if ids] if texts else []
    )
    available = sum(len(ids) + 1 for ids in documents)
    if available <= sequence_tokens:
        raise TrainingError(
            f"training.sequence_tokens is {sequence_tokens}, the training text has {available} tokens; "
            "it must have more; give more text or shorten the sequences"
        )
    stream = _stream(documents, tokenizer.eos_token_id, random.Random(f"{seed}:packing"))
    flat = [next(stream) for _ in range(count * sequence_tokens + 1)]
    tokens_NT = torch.tensor(flat).unfold(0, sequence_tokens + 1, sequence_tokens).clone()
    inputs_NT = tokens_NT[:, :-1]
    index_T = torch.arange(sequence_tokens)
    starts_NT = torch.where(inputs_NT == tokenizer.eos_token_id, index_T, 0).cummax(dim=1).values
    return PackedText(tokens_NT, index_T - starts_NT)


def pack_held_out(texts: Sequence[str], tokenizer: Any, sequence_tokens: int) -> PackedText | None:
    """Each token of held-out texts once, in at most MOST_HELD_OUT sequences; None where they do not fill one.

    Args:
        texts: documents.
        tokenizer: see `pack`.
        sequence_tokens: T, targets of a sequence.
    """
    available = (
        sum(len(ids) + 1 for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"])
        if texts
        else 0
    )
    count = min(MOST_HELD_OUT, (available - 1) // sequence_tokens)
    return pack(texts, tokenizer, sequence_tokens, count, seed=0) if count > 0 else None


def _stream(documents: list[list[int]], eos: int, rng: random.Random) -> Iterator[int]:
    """Tokens without end: the documents in a new random order in each pass."""
    order = list(documents)
    while True:
        rng.shuffle(order)
        for ids in order:
            yield eos
            yield from ids
