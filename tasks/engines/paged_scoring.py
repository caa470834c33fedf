"""Scoring on the graph that OpenVINO GenAI serves: paged attention, the same cache type and properties.

The exported model is stateful: one padded batch, one cache a layer. Before it serves it, GenAI rewrites it to
paged attention, where sequences of any length lie end to end and keys and values live in blocks. We apply the
same public transformation and drive the result ourselves. So every logit comes from the kernels that serve,
keys and values are read back from a cache of the served type, and there is no padding: 1.0-1.1 times the
stateful graph's tokens a second on 20-token items, 1.5-1.9 times on sections of 128 (f32, bf16 and u8 caches;
2 cores with AVX512-BF16).

The head of the model runs only where a target is (`tasks.engines.gathered_head`).

Sequences are fed in chunks: a quantized cache is requantized as it grows, and a serving scheduler feeds
chunks too. The choices of an item have one context, and may begin alike: what they have in common is fed once, the
blocks it fills are in the block table of every choice, and the last, half-filled one is copied for each.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino._offline_transformations import paged_attention_transformation

from tasks.engines.gathered_head import gather_before_head
from tasks.engines.paged_cache import PagedCache
from tasks.engines.protocol import EngineError, EngineUnavailable, ScoreRequest, TokenScores
from tasks.engines.row_softmax import RowSoftmax
from tasks.engines.target_scores import (
    MIN_SHARED_TOKENS,
    LogitRows,
    batches_of_groups,
    joined,
    part,
    scores_of_rows,
)

MAX_LOGIT_ROWS = 512  # rows of logits of an inference: 100 MB at a vocabulary of 49,152


@dataclass(frozen=True)
class _Sequence:
    """Tokens to feed behind `past` cached ones, and the scores that are read from them.

    Attributes:
        tokens: token ids, shape (n,).
        past: tokens that the first blocks of the table hold already.
        table: blocks of the cache, in order.
        rows: positions among `tokens` whose logits are needed, increasing.
        picks: for each score its index in `rows`, increasing.
        targets: for each score its token.
    """

    tokens: NDArray[np.int64]
    past: int
    table: NDArray[np.int64]
    rows: NDArray[np.int64]
    picks: NDArray[np.int64]
    targets: NDArray[np.int64]

    def scores(self, rows: LogitRows, span: NDArray[np.int64], keep: bool) -> TokenScores | None:
        """The scores that are read from the rows of a span (first, last); None where none is.

        Args:
            rows: what came back for these rows.
            span: indices into `rows`.
            keep: put the logits into the result.
        """
        first, last = span
        low, high = np.searchsorted(self.picks, (first, last))
        if low == high:
            return None
        return scores_of_rows(rows, self.targets[low:high], self.picks[low:high] - first, keep=keep)


class PagedScorer:
    """A compiled scoring graph and its own small KV cache."""

    def __init__(
        self,
        model_xml: Path,
        properties: dict[str, Any],
        kv_cache: str,
        *,
        chunk_tokens: int,
        batch_tokens: int,
    ) -> None:
        """Compile the graph.

        Args:
            model_xml: the stateful IR.
            properties: plugin properties, those of the serving pipeline.
            kv_cache: the cache type asked for; what was compiled must be it.
            chunk_tokens: tokens of each sequence fed at once; 0: all.
            batch_tokens: tokens of all sequences of a batch.

        Raises:
            EngineUnavailable: the plugin refuses the properties or compiled another cache type.
        """
        self._chunk_tokens = chunk_tokens
        self._batch_tokens = batch_tokens
        core = ov.Core()
        try:
            model = core.read_model(model_xml)
            paged_attention_transformation(model)
        except RuntimeError as error:
            raise EngineUnavailable(
                f"OpenVINO cannot serve this model with paged attention: {last_line(error)}; use engine: onnxruntime"
            ) from error
        gather_before_head(model)
        try:
            compiled = core.compile_model(model, "CPU", properties)
            self._softmax = RowSoftmax(core, properties)
        except RuntimeError as error:
            raise EngineUnavailable(
                f"OpenVINO refuses {properties}: {last_line(error)}; choose another kv_cache or compute"
            ) from error
        self._request = compiled.create_infer_request()
        self._cache = PagedCache(compiled, self._request, kv_cache)

    @property
    def block_bytes(self) -> int:
        """Bytes of one block of the KV cache, keys and values of all layers, scales included."""
        return self._cache.block_bytes

    @property
    def cache_bytes(self) -> int:
        """Bytes of the KV cache held now."""
        return self._cache.blocks * self._cache.block_bytes

    def score(self, requests: Iterable[ScoreRequest], *, with_logits: bool) -> Iterator[TokenScores]:
        """Yield the scores of each request, in order; a batch at a time is in flight."""
        batches = batches_of_groups(
            requests,
            batch_tokens=self._batch_tokens,
            max_targets=MAX_LOGIT_ROWS if with_logits else self._batch_tokens,
            min_shared=MIN_SHARED_TOKENS,
            block_tokens=self._cache.block_tokens,
        )
        for batch in batches:
            yield from self._score_batch(batch, with_logits)

    def _score_batch(
        self, groups: Sequence[Sequence[ScoreRequest]], with_logits: bool
    ) -> Iterator[TokenScores]:
        trunks, branches, copies = self._laid_out(groups)
        firsts = self._feed(trunks, with_logits)
        self._cache.copy(copies)
        rests = iter(self._feed(branches, with_logits))
        for group, first in zip(groups, firsts, strict=True):
            if len(group) == 1:
                yield first
                continue
            alike = len(first.logprobs) - len(group)
            for own, request in enumerate(group, alike):
                begun = joined(part(first, 0, alike) if alike else None, part(first, own, own + 1))
                yield joined(begun, next(rests) if len(request.targets) > alike + 1 else None)

    def _laid_out(
        self, groups: Sequence[Sequence[ScoreRequest]]
    ) -> tuple[list[_Sequence], list[_Sequence], list[tuple[int, int]]]:
        """What is fed first, what goes on from it, and the blocks to copy in between."""
        trunks: list[_Sequence] = []
        branches: list[_Sequence] = []
        copies: list[tuple[int, int]] = []
        taken = 0

        def take(tokens: int) -> NDArray[np.int64]:
            nonlocal taken
            count = self._cache.blocks_of(tokens)
            taken += count
            return np.arange(taken - count, taken)

        for group in groups:
            context, alone = group[0].context, len(group) == 1
            alike = _alike(group)
            fed = np.array(context + group[0].targets[:alike], np.int64)
            table = take(len(fed))
            rows = np.arange(len(context) - 1, len(fed))
            targets = np.array([*group[0].targets[:alike], *(r.targets[alike] for r in group)], np.int64)
            picks = np.minimum(np.arange(alike + len(group)), alike)
            trunks.append(_Sequence(fed, 0, table, rows, picks, targets))
            whole, rest = divmod(len(fed), self._cache.block_tokens)
            for request in group if not alone else ():
                more = np.array(request.targets[alike:], np.int64)
                if len(more) == 1:
                    continue
                own = take(rest + len(more) - 1)
                if rest:
                    copies.append((int(table[whole]), int(own[0])))
                every = np.arange(len(more) - 1)
                blocks = np.concatenate([table[:whole], own])
                branches.append(_Sequence(more[:-1], len(fed), blocks, every, every, more[1:]))
        self._cache.reserve(taken)
        return trunks, branches, copies

    def _feed(self, sequences: Sequence[_Sequence], with_logits: bool) -> list[TokenScores]:
        """Feed all, a chunk of each at a time."""
        longest = max((len(s.tokens) for s in sequences), default=0)
        chunk = self._chunk_tokens or max(longest, 1)
        scores: list[TokenScores | None] = [None] * len(sequences)
        for start in range(0, longest, chunk):
            spans = {
                i: np.searchsorted(s.rows, (start, start + chunk))
                for i, s in enumerate(sequences)
                if len(s.tokens) > start
            }
            for some in _within_rows(spans):
                logits = self._infer([sequences[i] for i in some], start, chunk, [spans[i] for i in some])
                for i, rows in zip(some, logits, strict=True):
                    if (made := sequences[i].scores(rows, spans[i], with_logits)) is not None:
                        scores[i] = joined(scores[i], made)
        return [_complete(made, len(s.targets)) for made, s in zip(scores, sequences, strict=True)]

    def _infer(
        self, sequences: Sequence[_Sequence], start: int, chunk: int, spans: Sequence[NDArray[np.int64]]
    ) -> list[LogitRows]:
        """Feed the tokens from `start` of each; for each the rows in its span."""
        pieces = [s.tokens[start : start + chunk] for s in sequences]
        past = np.array([s.past + start for s in sequences])
        ends = past + np.array([len(piece) for piece in pieces])
        begins = np.cumsum([0] + [len(piece) for piece in pieces])
        tables = [s.table[: self._cache.blocks_of(end)] for s, end in zip(sequences, ends, strict=True)]
        rows = np.concatenate(
            [
                s.rows[slice(*span)] - start + begin
                for s, span, begin in zip(sequences, spans, begins, strict=False)
            ]
        )
        feed = {
            "input_ids": np.concatenate(pieces),
            "position_ids": np.concatenate([np.arange(*ends_of) for ends_of in zip(past, ends, strict=True)]),
            "past_lens": past.astype(np.int32),
            "subsequence_begins": begins.astype(np.int32),
            "block_indices": np.concatenate(tables).astype(np.int32),
            "block_indices_begins": np.cumsum([0] + [len(table) for table in tables]).astype(np.int32),
            "max_context_len": np.array(ends.max(), np.int32),
            "target_rows": rows if len(rows) else np.zeros(1, np.int64),
        }
        try:
            self._request.infer(feed, share_inputs=True)
            logits: NDArray[np.float32] = self._request.get_tensor("logits").data
            logits = logits.reshape(-1, logits.shape[-1])[: len(rows)]
            found = self._softmax(logits)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed while scoring {len(pieces)} sequences: {error}") from error
        parts = np.cumsum([last - first for first, last in spans])[:-1]
        split = (np.split(each, parts) for each in (found.logits, found.top, found.total))
        return [LogitRows(*each) for each in zip(*split, strict=True)]


def _within_rows(spans: Mapping[int, NDArray[np.int64]]) -> Iterator[list[int]]:
    """The sequences of spans of rows in turn, in parts of at most `MAX_LOGIT_ROWS` rows, or of one sequence."""
    some: list[int] = []
    total = 0
    for each, (first, last) in spans.items():
        if some and total + last - first > MAX_LOGIT_ROWS:
            yield some
            some, total = [], 0
        some.append(each)
        total += last - first
    if some:
        yield some


def _alike(group: Sequence[ScoreRequest]) -> int:
    """With how many tokens all targets of a group begin; each has one more, which may differ."""
    first, last = min(r.targets for r in group), max(r.targets for r in group)
    most = min(len(r.targets) for r in group) - 1
    return next((i for i in range(most) if first[i] != last[i]), most)


def last_line(error: RuntimeError) -> str:
    """What OpenVINO says at the end of a message that begins with its own source lines."""
    return str(error).strip().splitlines()[-1]


def _complete(scores: TokenScores | None, count: int) -> TokenScores:
    found = 0 if scores is None else len(scores.logprobs)
    if scores is None or found != count:
        raise EngineError(f"{found} scores came back for {count} targets")
    return scores
