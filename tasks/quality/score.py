"""Everything a quality gate compares, for one model on one split: text and tasks, as samples."""

import hashlib
import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Literal

from configs.quality import QualitySettings
from tasks.data.text import TextSplits
from tasks.engines.protocol import Engine
from tasks.quality.divergence import diverge, reference_logits, reference_samples
from tasks.quality.pairing import ONE_SAMPLE_METRICS
from tasks.quality.quality_error import QualityError
from tasks.quality.samples import Sample, Samples
from tasks.quality.score_log import ScoreLog
from tasks.quality.tokenizer import TextTokenizer

SplitName = Literal["search", "gate"]
DEFAULT_CONTEXT_TOKENS = 2048  # where a model's config.json names no context; lm-eval's own default


def score_reference(
    engine: Engine,
    tokenizer_folder: Path,
    quality: QualitySettings,
    splits: TextSplits,
    pack: Path | None,
    split: SplitName,
    *,
    logits: Path,
    partial: Path | None = None,
    with_tasks: bool = True,
    items: int | None = None,
) -> Samples:
    """Score the source model; its logits stay in the file `logits`, and are taken from there if it exists.

    Arguments as in `score_candidate`.
    """
    rows: list[Sample] = []
    tokenizer, sections = TextTokenizer(tokenizer_folder), getattr(splits, split)
    rows += (
        reference_samples(logits)
        if logits.is_file()
        else reference_logits(engine, tokenizer, sections, logits)
    )
    if with_tasks and quality.margins.accuracy is not None:
        rows += _score_tasks(engine, tokenizer_folder, quality, pack, split, partial, items)
    return samples_of(rows)


def score_candidate(
    engine: Engine,
    tokenizer_folder: Path,
    quality: QualitySettings,
    splits: TextSplits,
    pack: Path | None,
    split: SplitName,
    *,
    logits: Path,
    partial: Path | None = None,
    with_tasks: bool = True,
    items: int | None = None,
) -> Samples:
    """Score a candidate on what the margins ask for.

    Args:
        engine: the candidate, open.
        tokenizer_folder: folder with tokenizer.json, tokenizer_config.json and config.json.
        quality: margins, tasks and seed.
        splits: the text.
        pack: folder of the embedded pack; None: `quality.tasks.pack` says where the tasks are.
        split: "search" while candidates are searched, "gate" for the verdict.
        logits: the file that `score_reference` wrote for this split.
        partial: JSONL to which answers are appended as they come, and from which a run that was killed goes
            on. One file for one candidate and split.
        with_tasks: false leaves the accuracy tasks out (a quick screen).
        items: items a task; None: `quality.tasks.items`.

    Raises:
        QualityError: the scores would not be honest; the message says where.
        EngineError: the engine failed.
    """
    rows: list[Sample] = []
    with ScoreLog(partial) as log:
        rows += diverge(engine, TextTokenizer(tokenizer_folder), getattr(splits, split), logits, log)
    if with_tasks and quality.margins.accuracy is not None:
        rows += _score_tasks(engine, tokenizer_folder, quality, pack, split, partial, items)
    return samples_of(rows)


def samples_of(rows: Iterable[Sample]) -> Samples:
    """Sort rows and digest what they are samples of.

    Raises:
        QualityError: there is no row, or one item stands twice.
    """
    ordered = sorted(rows, key=lambda row: (row.task, row.metric, row.item))
    if not ordered:
        raise QualityError("nothing was scored: quality.margins asks for nothing that this split has")
    for before, after in pairwise(ordered):
        if (before.task, before.metric, before.item) == (after.task, after.metric, after.item):
            raise QualityError(f"task {after.task}: item {after.item} stands twice under {after.metric}")
    # KL and flips stand on the items of perplexity and only a candidate has them: both sides have one digest.
    items = [
        [row.task, row.metric, row.item, row.item_hash]
        for row in ordered
        if row.metric not in ONE_SAMPLE_METRICS
    ]
    body = json.dumps(items)
    return Samples(items_digest=hashlib.sha256(body.encode()).hexdigest(), rows=tuple(ordered))


def _score_tasks(
    engine: Engine,
    tokenizer_folder: Path,
    quality: QualitySettings,
    pack: Path | None,
    split: SplitName,
    partial: Path | None,
    items: int | None,
) -> list[Sample]:
    from tasks.quality.harness import run_tasks

    if pack is None and split == "search":
        raise QualityError(
            "quality.tasks.pack: only the embedded pack has search items apart from its gate items; "
            "search by text alone (with_tasks=False)"
        )
    include = pack / split if pack is not None else Path(quality.tasks.pack) if quality.tasks.pack else None
    return run_tasks(
        engine,
        TextTokenizer(tokenizer_folder),
        quality.tasks.names,
        include=include,
        items=items or quality.tasks.items,
        seed=quality.seed,
        max_tokens=_context_tokens(tokenizer_folder),
        partial=partial,
    )


def _context_tokens(folder: Path) -> int:
    path = folder / "config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return int(settings.get("max_position_embeddings") or DEFAULT_CONTEXT_TOKENS)
