"""The scores of one candidate: its text, then each task, every part remembered under what it depends on.

The engine is opened at the first part that the store does not have, and closed with the whole. A baseline is scored once, whatever
is compared with it; answers are written as they come, so that a killed run, or a later look at more items, goes on from there.
"""

import json
import logging
from pathlib import Path
from typing import Literal, Self

from tasks.data.text import Section
from tasks.engines.protocol import Engine
from tasks.quality.divergence import diverge, reference_logits, reference_samples
from tasks.quality.item_notes import shortened
from tasks.quality.sample_set import joined_samples, samples_of
from tasks.quality.samples import ItemNote, Sample, Samples
from tasks.quality.score_log import ScoreLog
from tasks.quality.tokenizer import TextTokenizer
from tasks.release.candidate import Candidate
from tasks.release.gate_tasks import generates, task_set
from tasks.release.machine import machine_digest
from tasks.release.measuring import open_candidate, source_candidate
from tasks.release.workspace import Workspace
from tasks.store.digest import code_digest, digest_of
from tasks.store.errors import StoreError

logger = logging.getLogger(__name__)

SplitName = Literal["search", "gate"]
GENERATING = ("scheduler", "use_kv_cache", "speculation")  # engine settings that only generation reads
DEFAULT_CONTEXT_TOKENS = 2048  # where a model's config.json names no context; lm-eval's own default


class CandidateScores:
    """A candidate's samples on one split; a context manager that holds its engine, once it is needed."""

    def __init__(self, workspace: Workspace, candidate: Candidate | None, split: SplitName) -> None:
        """Nothing is opened yet.

        Args:
            workspace: of the rollout.
            candidate: what is scored; None: the reference, which is the source at full precision.
            split: "search" while candidates are searched, "gate" for the verdict.
        """
        self._workspace, self._split = workspace, split
        self._reference = source_candidate(workspace, workspace.config.quality.reference)
        self._is_reference = candidate is None
        self._candidate = self._reference if candidate is None else candidate
        self._engine: Engine | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def text(self) -> Samples:
        """Perplexity and, of any but the reference itself, KL and flips.

        Raises:
            EngineError: it does not work.
            QualityError: the scores would not be honest.
        """
        answers = self._answers_digest(self._candidate)
        if self._is_reference:
            logits = self.logits_path
            if not logits.is_file():
                self._say(f"{self._split} text")
                reference_logits(self.open(), self._tokenizer(), self._sections(), logits)
            own = digest_of([answers, self._split, "text"])
            # Every candidate asks for them again, and the softmax of a few hundred megabytes takes seconds.
            return self._workspace.store.once(
                f"samples-{own}", Samples, lambda: self._with_notes(reference_samples(logits))
            )[0]
        with CandidateScores(self._workspace, None, self._split) as reference:
            reference.text()

        def compute() -> Samples:
            self._say(f"{self._split} text")
            with ScoreLog(self._partial(f"{answers}-{self._answers_digest(self._reference)}")) as log:
                rows = diverge(self.open(), self._tokenizer(), self._sections(), self.logits_path, log)
            return self._with_notes(rows)

        key = digest_of([answers, self._answers_digest(self._reference), self._split, "text"])
        return self._workspace.store.once(f"samples-{key}", Samples, compute)[0]

    def task(self, name: str, items: int, judged: int = 0) -> Samples:
        """The first `items` gate items of one task in their drawn order, or all where it has fewer.

        Args:
            name: of the task.
            items: to be judged now.
            judged: items of the look before, which are not asked for again; 0 at the first.

        Raises:
            EngineError: it does not work.
            QualityError: the task is unknown or broken, or the scores would not be honest.
        """
        answers = self._answers_digest(self._candidate)
        if generates(self._workspace, name):  # continuous batching is part of what is answered
            generating = self._candidate.engine.model_dump(mode="json", include={*GENERATING})
            answers = digest_of([answers, generating])

        def compute() -> Samples:
            before = self.task(name, judged) if judged else None
            self._say(f"{items} items of {name}")
            scored = task_set(self._workspace).score(
                self.open(), self._tokenizer(), {name: items},
                max_tokens=context_tokens(self._folder()), after=judged, partial=self._partial(answers),
            )  # fmt: skip
            added = samples_of(scored.rows, scored.notes)
            return added if before is None else joined_samples((before, added))

        key = digest_of([answers, self._workspace.items_digest, name, items])
        return self._workspace.store.once(f"samples-{key}", Samples, compute)[0]

    def open(self) -> Engine:
        """The engine, opened now where no part needed it; it is closed with the whole.

        Raises:
            EngineError: it does not work.
            StoreError: an artifact is missing or damaged.
        """
        if self._engine is None:
            self._engine = open_candidate(self._workspace, self._candidate)
        return self._engine

    def open_again(self) -> Engine:
        """The engine for asking once more what it has answered: opened anew where it keeps the prompts that it has read.

        Raises:
            EngineError: it does not work.
            StoreError: an artifact is missing or damaged.
        """
        if self._candidate.engine.scheduler.prefix_caching:
            self._close()
        return self.open()

    def _say(self, what: str) -> None:
        logger.info("  scoring %s: %s", self._candidate.name, what)

    def _folder(self) -> Path:
        return self._workspace.store.open(self._candidate.artifact).folder

    def _tokenizer(self) -> TextTokenizer:
        return TextTokenizer(self._folder())

    def _sections(self) -> tuple[Section, ...]:
        splits = self._workspace.splits
        return splits.search if self._split == "search" else splits.gate

    def _answers_digest(self, candidate: Candidate) -> str:
        """What every answer of a candidate depends on.

        The scheduler is no part of it: log-likelihoods come from the served graph with the served cache type, without a scheduler.
        Nor is speculation, which changes how tokens are made and not what they are likely to be.
        """
        quality = self._workspace.config.quality
        engine = candidate.engine.model_dump(mode="json", exclude={*GENERATING})
        engine["threads"] = candidate.engine.own_threads
        batches = [quality.score_chunk_tokens, quality.batch_tokens, quality.seed]
        code = code_digest("tasks/engines", "tasks/quality", "tasks/data", "tasks/release/scoring.py")
        splits = self._workspace.splits.digest
        return digest_of([candidate.artifact, engine, batches, splits, machine_digest(), code])

    def _with_notes(self, rows: list[Sample]) -> Samples:
        texts = {section.id: section.text for section in self._sections()}
        notes = (
            ItemNote(task=row.task, item=row.item, item_hash=row.item_hash, prompt=shortened(texts[row.item]))
            for row in rows
            if row.metric == "perplexity"
        )
        return samples_of(rows, notes)

    @property
    def logits_path(self) -> Path:
        """Where the source's logits of this split are, once its text is scored."""
        digest = digest_of([self._answers_digest(self._reference), self._split])
        return self._workspace.derived / f"logits-{digest}"

    def _partial(self, digest: str) -> Path:
        """Kept after the end, too: a later look at more items goes on from here."""
        return self._workspace.derived / f"scores-{digest_of([digest, self._split])}.jsonl"


def remember(workspace: Workspace, joined: Samples) -> str:
    """Keep the table behind a verdict; return its key in the store."""
    key = f"samples-{digest_of(joined)}"
    workspace.store.once(key, Samples, lambda: joined)
    return key


def samples(workspace: Workspace, key: str) -> Samples:
    """Samples that were scored before.

    Raises:
        StoreError: they are not in the store any more.
    """
    found = workspace.store.recall(key, Samples)
    if found is None:
        raise StoreError(f"samples {key} are not in the store any more; run again to score them")
    return found


def context_tokens(folder: Path) -> int:
    """Tokens that the model of a folder was made for."""
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return int(settings.get("max_position_embeddings") or DEFAULT_CONTEXT_TOKENS)


def gate_logits(workspace: Workspace) -> Path:
    """The source's logits of the gate text, scored now where they are not there.

    Raises:
        EngineError, QualityError: the source cannot be scored.
    """
    with CandidateScores(workspace, None, "gate") as source:
        source.text()
        return source.logits_path
