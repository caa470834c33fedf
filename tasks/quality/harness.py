# ruff: noqa: E402 - the environment must be set before lm_eval is imported
"""lm-eval over our engines: with `lm_eval_tasks` the only importer of lm_eval.

Imported lazily, it takes seconds. lm-eval builds the requests and computes the metrics of each item; tokens
are scored by the engine under test. Its own statistics (standard errors, bootstrap) are not used, and neither
is its cache: the cache's key leaves the model out, and a second model gets the first one's scores.
"""

import logging
import os
import random
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before lm_eval imports datasets and huggingface_hub, which read them once.
for _name in (
    "HF_HUB_DISABLE_TELEMETRY",
    "HF_DATASETS_DISABLE_PROGRESS_BARS",
    "HF_HUB_DISABLE_PROGRESS_BARS",
):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jinja2 import TemplateError
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from tasks.engines.protocol import Engine, EngineError, ScoreRequest
from tasks.quality.engine_answers import EngineAnswers
from tasks.quality.item_notes import item_note
from tasks.quality.item_rows import item_hash, item_samples
from tasks.quality.lm_eval_tasks import load_tasks, one_line
from tasks.quality.quality_error import QualityError
from tasks.quality.samples import ItemNote, Sample
from tasks.quality.score_log import ScoreLog
from tasks.quality.task_items import check_fields, check_ids
from tasks.quality.tokenizer import TextTokenizer

FIELD_SETTINGS = ("doc_to_text", "doc_to_choice", "doc_to_target")


class EngineLM(TemplateLM):  # type: ignore[misc]
    """An engine as an lm-eval model; encodes like lm-eval's `hf` model."""

    def __init__(self, answers: EngineAnswers) -> None:
        super().__init__()
        self._answers, self._items = answers, [0]

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token."""
        return self._answers.text.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context."""
        return self._answers.text.prefix_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Text to tokens."""
        return self._answers.text.encode(string, add_special_tokens)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log-likelihood of continuations, and whether they are greedy; without a progress bar."""
        self._items = [request.doc_id for request in requests]
        result: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return result

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        asked = [self._answers.request(context, targets) for _, context, targets in requests]
        return self._answers.likelihoods(asked, self._items)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in disjoint windows of the model's context."""
        windows: list[list[ScoreRequest]] = []
        for (text,) in (request.args for request in requests):
            rolled = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self._answers.max_tokens,
                context_len=1,
            )
            windows.append([self._answers.request(*make_disjoint_window(window)) for window in rolled])
        items = [r.doc_id for r, group in zip(requests, windows, strict=True) for _ in group]
        scores = iter(self._answers.likelihoods([r for group in windows for r in group], items))
        return [sum(next(scores)[0] for _ in group) for group in windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy completions, cut at the first stop string."""
        prompts, settings = zip(*(request.args for request in requests), strict=True)
        return self._answers.completions(prompts, settings, [request.doc_id for request in requests])


@dataclass(frozen=True)
class Scored:
    """What one model made of some items: the samples, and the items in readable form."""

    rows: tuple[Sample, ...]
    notes: tuple[ItemNote, ...]


class TaskSet:
    """Tasks loaded once and asked several times: of two models, and of growing numbers of items.

    The items of a task stand in one permutation drawn by the seed; n items are its first n, so more items
    extend fewer. The examples of a few-shot prompt depend on the seed and the item alone, so that an item is
    asked with the same words whatever is asked beside it.

    Attributes:
        names: the loaded tasks; a group or tag stands here as its tasks.
    """

    def __init__(self, names: Sequence[str], *, include: Path | None, seed: int) -> None:
        """Load tasks.

        Args:
            names: tasks, groups or tags as lm-eval names them.
            include: folder of task YAMLs; None: lm-eval's own tasks, whose data come from the hub.
            seed: of the order of the items.

        Raises:
            QualityError: a task that is unknown, cannot be built or had, has no items, or has an id twice.
        """
        with _quiet():
            self._tasks = load_tasks(names, include)
        self.names = tuple(self._tasks)
        self._order: dict[str, list[int]] = {}
        for name, task in self._tasks.items():
            docs = task.eval_docs
            check_ids(name, docs["id"] if "id" in docs.column_names else ())
            order = list(range(len(docs)))
            random.Random(f"{seed}:{name}").shuffle(order)
            self._order[name] = order

    def size(self, name: str) -> int:
        """Number of items of a task.

        Raises:
            QualityError: the set has no such task.
        """
        if name not in self._order:
            raise QualityError(f"no task {name} in the set; it has {', '.join(self.names)}")
        return len(self._order[name])

    def generates(self, name: str) -> bool:
        """Whether a task is answered by generating.

        Raises:
            QualityError: the set has no such task.
        """
        return bool(self.size(name) and self._tasks[name].OUTPUT_TYPE == "generate_until")

    def texts(self, name: str, items: int) -> list[str]:
        """What the first items of a task say: the question, alone or with each of its choices.

        Raises:
            QualityError: the set has no such task.
        """
        chosen = self._order[name][:items] if self.size(name) else []
        task = self._tasks[name]
        return [text for doc in task.eval_docs.select(sorted(chosen)) for text in _wordings(task, doc)]

    def score(
        self,
        engine: Engine,
        tokenizer: TextTokenizer,
        items: Mapping[str, int],
        *,
        max_tokens: int,
        after: int = 0,
        among: Collection[str] | None = None,
        partial: Path | None = None,
    ) -> Scored:
        """Score the first items of tasks.

        Args:
            engine: scores the tokens.
            tokenizer: of the artifact the engine serves.
            items: task to number of items; a task with fewer is scored whole.
            max_tokens: the model's context.
            after: items of each task that are left out, because they are scored already; fewer than there are.
            among: of these the items with such names only; None: all.
            partial: where answers are kept as they come; one file for one candidate.

        Raises:
            QualityError: an unknown task, a missing field, a score that is not finite; the message says where.
            EngineError: the engine failed; the message says on which task.
        """
        rows: list[Sample] = []
        notes: list[ItemNote] = []
        with _quiet(), ScoreLog(partial) as log:
            for name, count in items.items():
                drawn = self._order[name][after : max(1, count)] if self.size(name) else []
                chosen = sorted(each for each in drawn if among is None or str(each) in among)
                answers = EngineAnswers(engine, tokenizer, max_tokens, log)
                found = self._score_task(name, chosen, answers)
                rows += found.rows
                notes += found.notes
        return Scored(tuple(rows), tuple(notes))

    def _score_task(self, name: str, chosen: list[int], answers: EngineAnswers) -> Scored:
        """`chosen` ascends: lm-eval labels the documents wrongly in any other order."""
        task = self._tasks[name]
        settings = [task.get_config(setting) for setting in FIELD_SETTINGS]
        check_fields(name, zip(chosen, task.eval_docs.select(chosen), strict=True), settings)
        try:
            result = evaluate(
                EngineLM(answers),
                {"tasks": {name: task}, "groups": {}},
                samples={name: chosen},
                bootstrap_iters=0,
                log_samples=True,
            )
        except (TemplateError, KeyError) as error:
            raise QualityError(f"task {name}: an item does not fit its YAML ({one_line(error)})") from error
        except (QualityError, EngineError) as error:
            raise type(error)(f"task {name}: {one_line(error)}") from error
        if result is None:
            raise QualityError(f"task {name}: lm-eval returned no results")
        logged = result["samples"][name]
        asked = {item: answers.asked(place) for place, item in enumerate(chosen)}
        notes = {
            sample["doc_id"]: item_note(
                name, sample, item_hash(sample, asked[sample["doc_id"]]), _question(task, sample["doc"])
            )
            for sample in logged
        }
        return Scored(tuple(item_samples(name, logged, asked)), tuple(notes.values()))


def _question(task: Task, doc: Any) -> str:
    """The item's own text, without examples; empty where the task has none (a text to be read, a choice of contexts)."""
    text = task.doc_to_text(doc)
    return text if isinstance(text, str) else ""


def _wordings(task: Task, doc: Any) -> list[str]:
    question = _question(task, doc)
    if task.OUTPUT_TYPE != "multiple_choice":
        target = task.doc_to_target(doc)
        return [f"{question} {target}" if isinstance(target, str) else question]
    return [f"{question} {choice}" for choice in task.doc_to_choice(doc)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Standard output belongs to the caller's one JSON document; what lm-eval prints goes to stderr."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        logger.setLevel(level)
