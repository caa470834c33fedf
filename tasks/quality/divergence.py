"""Perplexity, KL divergence from the reference and flips, from one pass over sections of text.

The reference's next-token logits go to one file, as float16 of logit - max: a section of 120 tokens of a 49k
vocabulary is 12 MB, read back with one plain read. It is never memory-mapped: mapped pages count against the
memory limit. The candidate's logits are rounded in the same way before they are compared, so that a model
compared with itself diverges by nothing.

Every token of a section is scored, the first one after the prefix token (BOS where the model has one, else
EOS): lm-eval's rule for texts without context. Sections, not their topics, are the clusters: twenty
topic-sized clusters covered 85-91 % in a trial of nominal 95 % intervals, and topics differ more in length
than in how they suffer from quantization.

torch does the arithmetic: numpy turns float16 into float32 and back in a single thread, one number at a time (10 times as long).

Shapes: T target tokens of a section, V vocabulary.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.data.text import Section
from tasks.engines.protocol import Engine, ScoreRequest, TokenScores
from tasks.quality.quality_error import QualityError
from tasks.quality.samples import Sample
from tasks.quality.score_log import ScoreLog, request_key
from tasks.quality.tokenizer import TextTokenizer
from tasks.store.record import Record

TEXT_TASK = "text"
ROWS_AT_ONCE = 16  # rows of logits compared at once: 3 MB of float32 at a vocabulary of 49k stay in the cache


class ReferenceSection(Record):
    """One section as the reference saw it: `nll` in nats over `tokens` tokens; hash of its token ids."""

    id: str
    item_hash: str
    tokens: int
    nll: float


class ReferenceIndex(Record):
    """What a logits file holds: sections in the order of their rows."""

    vocab_size: int
    sections: tuple[ReferenceSection, ...]


def reference_logits(
    engine: Engine, tokenizer: TextTokenizer, sections: Sequence[Section], path: Path
) -> list[Sample]:
    """Write the reference's logits and return its perplexity samples. The file appears whole or not at all.

    Layout: float16 rows of V, then a `ReferenceIndex` as JSON, then its length in 8 bytes, little endian.

    Raises:
        QualityError: no section, or a non-finite score.
    """
    requests = _requests(tokenizer, sections)
    index: list[ReferenceSection] = []
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with aside.open("wb") as file:
            scores = engine.score(requests, with_logits=True)
            for section, request, scored in zip(sections, requests, scores, strict=True):
                logits = _checked(section.id, request, scored)
                file.write(_rounded(logits).tobytes())
                index.append(
                    ReferenceSection(
                        id=section.id, item_hash=_hash(request), tokens=len(request.targets), nll=_nll(scored)
                    )
                )
            tail = (
                ReferenceIndex(vocab_size=logits.shape[1], sections=tuple(index)).model_dump_json().encode()
            )
            file.write(tail + len(tail).to_bytes(8, "little"))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return reference_samples(path)


def reference_samples(path: Path) -> list[Sample]:
    """The reference's perplexity samples, as they stand in its logits file."""
    with path.open("rb") as file:
        index, _ = _read_index(file, path)
    return [_sample("perplexity", s.id, s.item_hash, s.nll, s.tokens) for s in index.sections]


def diverge(
    engine: Engine, tokenizer: TextTokenizer, sections: Sequence[Section], path: Path, log: ScoreLog
) -> list[Sample]:
    """The candidate's perplexity, KL(reference || candidate) and flips, one sample a section and metric.

    Args:
        engine: the candidate.
        tokenizer: of the candidate; must give the reference's tokens.
        sections: the ones the file was made of, or some of them.
        path: the file of `reference_logits`.
        log: keeps sections already scored.

    Raises:
        QualityError: other sections, tokens or vocabulary than the reference's; a damaged file; a non-finite
            score.
    """
    requests = _requests(tokenizer, sections)
    with path.open("rb") as file:
        index, starts = _read_index(file, path)
        places = {(s.id, s.item_hash): number for number, s in enumerate(index.sections)}
        found = [places.get((s.id, _hash(r))) for s, r in zip(sections, requests, strict=True)]
        stored = [(index.sections[place], starts[place]) for place in found if place is not None]
        if len(stored) < len(sections):
            raise QualityError(f"{path} has other sections or another tokenizer; score the reference again")
        keys = [request_key("diverge", r.context, r.targets) for r in requests]
        todo = [number for number, key in enumerate(keys) if log.get(key) is None]
        scores = engine.score([requests[number] for number in todo], with_logits=True) if todo else iter(())
        for number, scored in zip(todo, scores, strict=True):
            logits = _checked(sections[number].id, requests[number], scored)
            if logits.shape[1] != index.vocab_size:
                raise QualityError(
                    f"the candidate has {logits.shape[1]} logits a token, the reference {index.vocab_size}"
                )
            kl, flips = _compare(file, stored[number][1], logits)
            log.put(keys[number], [_nll(scored), kl, flips])
    rows = []
    for (entry, _), key in zip(stored, keys, strict=True):
        values: list[float] = log.get(key)  # type: ignore[assignment]
        for metric, value in zip(("perplexity", "kl", "flips"), values, strict=True):
            rows.append(_sample(metric, entry.id, entry.item_hash, value, entry.tokens))
    return rows


def kl_and_flips(reference: NDArray[np.float16], candidate: NDArray[np.float16]) -> tuple[float, int]:
    """Summed KL(reference || candidate) in nats and changed argmaxes of rows of logit - max, shape (T, V)."""
    ref, cand = torch.from_numpy(reference).float(), torch.from_numpy(candidate).float()
    weights = ref.exp()
    mass = weights.sum(dim=1, dtype=torch.float64)
    cross = weights.mul_(ref - cand).sum(dim=1, dtype=torch.float64) / mass
    kl = cross - mass.log() + cand.exp().sum(dim=1, dtype=torch.float64).log()
    return float(kl.sum()), int((ref.argmax(dim=1) != cand.argmax(dim=1)).sum())


def _compare(file: BinaryIO, start: int, logits: NDArray[np.float32]) -> tuple[float, int]:
    """KL and flips of one section, a few rows at a time."""
    file.seek(start)
    kl, flips, (tokens, vocab) = 0.0, 0, logits.shape
    for row in range(0, tokens, ROWS_AT_ONCE):
        block = _rounded(logits[row : row + ROWS_AT_ONCE])
        stored = np.fromfile(file, dtype=np.float16, count=block.size).reshape(-1, vocab)
        block_kl, block_flips = kl_and_flips(stored, block)
        kl, flips = kl + block_kl, flips + block_flips
    return max(kl, 0.0), flips  # rounding can leave -1e-16


def _requests(tokenizer: TextTokenizer, sections: Sequence[Section]) -> list[ScoreRequest]:
    if not sections:
        raise QualityError("no sections of text to score; see quality.text")
    return [
        ScoreRequest((tokenizer.prefix_id,), tuple(tokenizer.encode(section.text, add_special_tokens=False)))
        for section in sections
    ]


def _rounded(logits: NDArray[np.float32]) -> NDArray[np.float16]:
    """Logit - max; what is below float16's range has no probability and stays finite."""
    rounded = np.empty(logits.shape, np.float16)
    for row in range(0, len(logits), ROWS_AT_ONCE):
        block = torch.from_numpy(logits[row : row + ROWS_AT_ONCE])
        shifted = (block - block.amax(dim=1, keepdim=True)).clamp_(min=-60000.0)
        rounded[row : row + ROWS_AT_ONCE] = shifted.half().numpy()
    return rounded


def _checked(section: str, request: ScoreRequest, scored: TokenScores) -> NDArray[np.float32]:
    logits = scored.logits
    if logits is None or len(logits) != len(request.targets) or len(scored.logprobs) != len(request.targets):
        raise QualityError(f"section {section}: the engine did not return logits for every target token")
    if not (np.isfinite(scored.logprobs).all() and np.isfinite(logits).all()):
        raise QualityError(f"section {section}: the engine returned a non-finite number")
    return logits


def _nll(scored: TokenScores) -> float:
    return -float(scored.logprobs.sum(dtype=np.float64))


def _hash(request: ScoreRequest) -> str:
    return hashlib.sha256(json.dumps([request.context, request.targets]).encode()).hexdigest()


def _sample(metric: str, item: str, item_hash: str, value: float, tokens: int) -> Sample:
    return Sample(
        task=TEXT_TASK,
        metric=metric,
        item=item,
        item_hash=item_hash,
        cluster=item,
        value=value,
        weight=tokens,
    )


def _read_index(file: BinaryIO, path: Path) -> tuple[ReferenceIndex, list[int]]:
    """The index and the byte at which each section's rows start. Checks the file's size."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 8))
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= size - 8:
        raise QualityError(f"{path} is no file of reference logits, or was cut off; delete it to score again")
    file.seek(size - 8 - length)
    index = ReferenceIndex.model_validate_json(file.read(length))
    starts, at = [], 0
    for section in index.sections:
        starts.append(at)
        at += section.tokens * index.vocab_size * np.dtype(np.float16).itemsize
    if at != size - 8 - length:
        raise QualityError(
            f"{path} has {size} bytes, its index says {at + 8 + length}; delete it to score again"
        )
    return index, starts
