"""A reload by a fresh process: every artifact of the stage opened from the store and scored once more.

What an artifact computes in the process that built it may rest on what that process still holds. So one child process, which
inherits nothing but the store's folder, hashes each artifact's files again, opens it on its engine, scores the first sections of the
search text and hands the log-probabilities back. They must be those of the screen, but for the rounding that another batch brings.

The child answers in a file, a line an artifact, because libraries print where they like; one that dies names its artifact by the
lines that are missing, and another child goes on behind it.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.engine import EngineSettings
from tasks.engines.open import open_engine
from tasks.engines.protocol import EngineError, ScoreRequest
from tasks.quality.tokenizer import TextTokenizer
from tasks.release.candidate import Candidate
from tasks.release.fresh_process import run_fresh
from tasks.release.machine import machine_digest
from tasks.release.scoring import CandidateScores
from tasks.release.workspace import Workspace
from tasks.store.digest import code_digest, digest_of
from tasks.store.errors import StoreError
from tasks.store.record import Record
from tasks.store.store import Store

logger = logging.getLogger(__name__)

SECTIONS = 2  # of the search text
TOLERANCE_NATS = (
    2e-3  # a token, f32 arithmetic on f32 activations and cache: other batches sum in another order
)
ROUNDED_TOLERANCE_NATS = 2e-2  # where arithmetic, activations or cache have 8 or 16 bits
_SECONDS_AN_ARTIFACT = 300.0  # before a child counts as hung; one takes about a second


class ReloadJob(Record):
    """What a fresh process is asked: one artifact, the sequences to score, (context, targets) each."""

    artifact: str
    engine: EngineSettings
    chunk_tokens: int
    batch_tokens: int
    sequences: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]


class ReloadRequest(Record):
    """Everything that one child is asked."""

    store: Path
    answers: Path
    jobs: tuple[ReloadJob, ...]


class Reloaded(Record):
    """What it answers: negative log-probability of each sequence in nats, or why there is none."""

    artifact: str
    nll: tuple[float, ...] = ()
    error: str | None = None


def check_reloads(workspace: Workspace, candidates: Sequence[Candidate]) -> dict[str, str]:
    """Let fresh processes open and score the artifacts of some candidates, each artifact once.

    Args:
        workspace: of the rollout.
        candidates: screened ones; of several on one artifact the first is reloaded.

    Returns:
        Why an artifact failed, by its address; an artifact that is not in it was reloaded, now or earlier.
    """
    first = {candidate.artifact: candidate for candidate in reversed(candidates)}
    todo = {
        address: candidate
        for address, candidate in first.items()
        if workspace.store.recall(_key(candidate), Reloaded) is None
    }
    failed: dict[str, str] = {}
    for answer in _reload(workspace.store, [_job(workspace, candidate) for candidate in todo.values()]):
        candidate = todo[answer.artifact]
        reason = answer.error or _difference(workspace, candidate, answer)
        if reason is None:
            workspace.store.remember(_key(candidate), answer)
        else:
            logger.warning("%s failed its reload: %s", candidate.name, reason)
            failed[answer.artifact] = f"a fresh process cannot use the artifact: {reason}"
    return failed


def _reload(store: Store, jobs: Sequence[ReloadJob]) -> list[Reloaded]:
    """One answer a job. A child that dies costs its artifact, and the rest goes to another child."""
    answers: list[Reloaded] = []
    while len(answers) < len(jobs):
        rest = tuple(jobs[len(answers) :])
        with store.scratch() as folder:
            path = folder / "answers.jsonl"
            ended = _run_child(ReloadRequest(store=store.home, answers=path, jobs=rest))
            lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        answers += [Reloaded.model_validate_json(line) for line in lines]
        if len(lines) < len(rest):
            answers.append(Reloaded(artifact=rest[len(lines)].artifact, error=ended))
    return answers


def _run_child(request: ReloadRequest) -> str:
    """Run one child to its end; how it ended, for an artifact without an answer."""
    return run_fresh("tasks.quantization.reload", request, limit_s=_SECONDS_AN_ARTIFACT * len(request.jobs))


def _job(workspace: Workspace, candidate: Candidate) -> ReloadJob:
    tokenizer = TextTokenizer(workspace.source.folder)
    texts = [section.text for section in workspace.splits.search[:SECTIONS]]
    targets = [tuple(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
    return ReloadJob(
        artifact=candidate.artifact,
        engine=candidate.engine,
        chunk_tokens=workspace.config.quality.score_chunk_tokens,
        batch_tokens=workspace.config.quality.batch_tokens,
        sequences=tuple(((tokenizer.prefix_id,), each) for each in targets),
    )


def _difference(workspace: Workspace, candidate: Candidate, answer: Reloaded) -> str | None:
    """Where the log-probabilities are not those of the screen; None where they are."""
    with CandidateScores(workspace, candidate, "search") as scores:
        rows = {row.item: row for row in scores.text().rows if row.metric == "perplexity"}
    sections = workspace.splits.search[:SECTIONS]
    limit = tolerance_nats(candidate)
    for section, nll in zip(sections, answer.nll, strict=True):
        row = rows[section.id]
        apart = abs(nll - row.value) / row.weight
        if not apart <= limit:  # NaN is not
            return (
                f"section {section.id} has {nll / row.weight:.4f} nats a token there and {row.value / row.weight:.4f} "
                f"in the process that built it; rounding may bring {limit:g}"
            )
    return None


def tolerance_nats(candidate: Candidate) -> float:
    """What rounding may change in the mean log-probability of a section."""
    engine = candidate.engine
    exact = engine.compute == "f32" and engine.kv_cache == "f32" and not engine.activation_group
    return TOLERANCE_NATS if exact and candidate.format.bits == 32 else ROUNDED_TOLERANCE_NATS


def _key(candidate: Candidate) -> str:
    code = code_digest("tasks/engines", "tasks/quantization/reload.py")
    return f"reload-{digest_of([candidate.artifact, candidate.engine, machine_digest(), code])}"


def answer_jobs(request: ReloadRequest) -> None:
    """The child's part: open, score, write one line an artifact."""
    store = Store(request.store)
    with request.answers.open("w", encoding="utf-8") as file:
        for job in request.jobs:
            file.write(f"{_answer(store, job).model_dump_json()}\n")
            file.flush()


def _answer(store: Store, job: ReloadJob) -> Reloaded:
    requests = [ScoreRequest(context, targets) for context, targets in job.sequences]
    try:
        artifact = store.open(job.artifact)
        with open_engine(
            artifact, job.engine, chunk_tokens=job.chunk_tokens, batch_tokens=job.batch_tokens
        ) as engine:
            scored = list(engine.score(requests))
        return Reloaded(artifact=job.artifact, nll=tuple(-float(s.logprobs.sum(dtype="f8")) for s in scored))
    except (EngineError, StoreError, MemoryError, ValueError) as error:
        return Reloaded(
            artifact=job.artifact, error=f"{type(error).__name__}: {' '.join(str(error).split())}"
        )


def main(text: str) -> None:
    """Answer the request that stands on standard input."""
    answer_jobs(ReloadRequest.model_validate_json(text))


if __name__ == "__main__":
    main(sys.stdin.read())
