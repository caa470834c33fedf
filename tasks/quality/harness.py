# ruff: noqa: E402 - the environment must be set before lm_eval is imported
"""lm-eval over our engines: the only importer of lm_eval.

Imported lazily, it takes seconds. lm-eval builds the requests and computes the metrics of each item; tokens
are scored by the engine under test. Its own statistics (standard errors, bootstrap) are not used, and neither
is its cache: the cache's key leaves the model out, and a second model gets the first one's scores.
"""

import logging
import os
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
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
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from tasks.engines.protocol import Engine, GenerationRequest, ScoreRequest
from tasks.quality.item_rows import item_samples
from tasks.quality.quality_error import QualityError
from tasks.quality.samples import Sample
from tasks.quality.score_log import ScoreLog, request_key
from tasks.quality.shared_context import score_likelihoods
from tasks.quality.tokenizer import TextTokenizer

FEWSHOT_SEED = 1234  # lm-eval's own default, so that few-shot prompts are those of its published figures
# What lm-eval lets through when it builds a task from a broken definition or from data that does not fit it.
TASK_FAULTS = (TemplateError, ValueError, LookupError, TypeError, AttributeError, OSError)
FIELD_SETTINGS = ("doc_to_text", "doc_to_choice", "doc_to_target")
DEFAULT_NEW_TOKENS = 256  # lm-eval's, for tasks that set no max_gen_toks


class EngineLM(TemplateLM):  # type: ignore[misc]
    """An engine as an lm-eval model. Encodes like lm-eval's `hf` model; a longer text loses its beginning."""

    def __init__(self, engine: Engine, tokenizer: TextTokenizer, max_tokens: int, log: ScoreLog) -> None:
        super().__init__()
        self._engine, self._text, self._max_tokens, self._log = engine, tokenizer, max_tokens, log

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token."""
        return self._text.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context."""
        return self._text.prefix_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Text to tokens."""
        return self._text.encode(string, add_special_tokens)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log-likelihood of continuations, and whether they are greedy; without a progress bar."""
        result: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return result

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        return self._score([self._request(context, targets) for _, context, targets in requests])

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in disjoint windows of the model's context."""
        windows: list[list[ScoreRequest]] = []
        for (text,) in (request.args for request in requests):
            rolled = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self._max_tokens,
                context_len=1,
            )
            windows.append([self._request(*make_disjoint_window(window)) for window in rolled])
        scores = iter(self._score([request for group in windows for request in group]))
        return [sum(next(scores)[0] for _ in group) for group in windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy completions, cut at the first stop string."""
        asked = [self._generation(*request.args) for request in requests]
        keys = [request_key("generate", r.prompt, r.max_new_tokens) for r, _ in asked]
        missing = {
            key: request for key, (request, _) in zip(keys, asked, strict=True) if self._log.get(key) is None
        }
        todo = sorted(missing.items(), key=lambda pair: (pair[1].max_new_tokens, len(pair[1].prompt)))
        step = 4 * self._engine.settings.scheduler.max_num_seqs  # what a kill may lose
        for start in range(0, len(todo), step):
            batch = todo[start : start + step]
            for (key, _), done in zip(batch, self._engine.generate([r for _, r in batch]), strict=True):
                self._log.put(key, list(done.tokens))
        return [self._cut(key, until) for key, (_, until) in zip(keys, asked, strict=True)]

    def _request(self, context: Sequence[int], targets: Sequence[int]) -> ScoreRequest:
        """At most max_tokens tokens are fed: the last target is never an input."""
        if not targets or len(targets) > self._max_tokens:
            raise QualityError(
                f"a continuation has {len(targets)} tokens; this model takes 1 to {self._max_tokens}"
            )
        kept = context[-(self._max_tokens + 1 - len(targets)) :]
        return ScoreRequest(tuple(kept), tuple(targets))

    def _score(self, requests: list[ScoreRequest]) -> list[tuple[float, bool]]:
        keys = {request: request_key("score", request.context, request.targets) for request in requests}
        missing = [request for request, key in keys.items() if self._log.get(key) is None]
        for found in score_likelihoods(self._engine, missing):
            self._log.put(keys[found.request], [found.logprob, found.is_greedy])
        return [(float(a[0]), bool(a[1])) for a in (self._log.get(keys[r]) for r in requests)]  # type: ignore[index]

    def _generation(self, context: str, settings: dict[str, Any]) -> tuple[GenerationRequest, list[str]]:
        if settings.get("do_sample") and settings.get("temperature", 1.0):
            raise QualityError(f"generation_kwargs {settings} samples; only greedy decoding is reproducible")
        until = settings.get("until") or []
        new_tokens = int(settings.get("max_gen_toks", DEFAULT_NEW_TOKENS))
        prompt = self.tok_encode(context)[-max(1, self._max_tokens - new_tokens) :]
        stops = [until] if isinstance(until, str) else list(until)
        return GenerationRequest(tuple(prompt or [self.prefix_token_id]), new_tokens), stops

    def _cut(self, key: str, until: list[str]) -> str:
        text = self._text.decode(self._log.get(key))  # type: ignore[arg-type]
        for stop in filter(None, until):
            text = text.split(stop)[0]
        return text


def run_tasks(
    engine: Engine,
    tokenizer: TextTokenizer,
    names: Sequence[str],
    *,
    include: Path | None,
    items: int | None,
    seed: int,
    max_tokens: int,
    partial: Path | None = None,
) -> list[Sample]:
    """Score tasks and return one sample an item and metric.

    Args:
        engine: scores the tokens.
        tokenizer: of the artifact the engine serves.
        names: tasks as lm-eval names them.
        include: folder of task YAMLs; None: lm-eval's own tasks.
        items: items of each task, the first of one permutation drawn by `seed`: more items extend fewer.
            Tasks with
            fewer items are scored whole. None: all.
        seed: of the permutation.
        max_tokens: the model's context.
        partial: where answers are kept as they come; one file for one candidate.

    Raises:
        QualityError: an unknown task, a task without items, a missing field, a score that is not finite.
    """
    with _quiet(), ScoreLog(partial) as log:
        tasks = _load(names, include)
        chosen = {name: _draw(name, task, items, seed) for name, task in tasks.items()}
        lm = EngineLM(engine, tokenizer, max_tokens, log)
        result = evaluate(
            lm, {"tasks": tasks, "groups": {}}, samples=chosen, bootstrap_iters=0, log_samples=True
        )
    if result is None:
        raise QualityError("lm-eval returned no results")
    return [row for name in tasks for row in item_samples(name, result["samples"][name])]


def _load(names: Sequence[str], include: Path | None) -> dict[str, Task]:
    manager = TaskManager(include_path=str(include) if include else None, include_defaults=include is None)
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        where = include or "lm-eval's own tasks"
        raise QualityError(
            f"quality.tasks.names: no task {unknown[0]} in {where}; it has {manager.all_tasks[:8]}"
        )
    tasks: dict[str, Task] = {}
    for name in names:
        try:
            tasks |= manager.load([name])["tasks"]
        except TASK_FAULTS as error:
            raise QualityError(
                f"task {name} cannot be built: it has no items, or its items lack a field that its YAML "
                f"names ({type(error).__name__}: {error})"
            ) from error
    for task in tasks.values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    return tasks


def _draw(name: str, task: Task, items: int | None, seed: int) -> list[int]:
    """Document numbers, ascending: lm-eval labels the documents wrongly in any other order."""
    count = len(task.eval_docs)
    if count == 0:
        raise QualityError(f"task {name} has no items")
    order = list(range(count))
    random.Random(f"{seed}:{name}").shuffle(order)
    chosen = sorted(order[:items])
    fields = [task.get_config(setting) for setting in FIELD_SETTINGS]
    for item, doc in zip(chosen, task.eval_docs.select(chosen), strict=True):
        for field in fields:
            if isinstance(field, str) and field in doc and doc[field] is None:
                raise QualityError(f"task {name}, item {item}: field {field!r} is missing")
    return chosen


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
