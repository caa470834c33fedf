"""A candidate served in a process of its own: its speed, and the memory that it takes where nothing else was before.

Inside a long rollout the same engine grows by something else: it fills what a build has left behind, and finds libraries loaded by
an earlier one, or loads them for a later one. On the demo that moved peaks by up to 15 % (docs/log.md). A process that has imported
the engine's library, and opens one artifact, grows by what the candidate takes. One that the kernel kills for its memory costs this
candidate only.

    served_alone(store, job) -> Served     the parent's part: starts the process, raises EngineError for what it says
    serve(store, job) -> Served            the child's part
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from configs.engine import EngineSettings
from configs.schema import RequestSettings
from tasks.engines.open import import_engine, open_engine
from tasks.engines.protocol import Engine, EngineError, GenerationRequest
from tasks.release.candidate import Performance
from tasks.release.fresh_process import run_fresh
from tasks.serving.latency import measure
from tasks.serving.memory_peak import MemoryPeak
from tasks.store.errors import StoreError
from tasks.store.record import Record
from tasks.store.store import Store

R = TypeVar("R", bound=Record)


class ServeJob(Record):
    """What is served.

    Attributes:
        artifact: its address.
        engine: the configuration it is served under.
        draft: address of the artifact that drafts for it; None where it has no draft model.
        chunk_tokens, batch_tokens: of scoring, as the engine is opened with them everywhere.
        requests: that speed and memory are measured on.
        text_tokens: token ids that their prompts are cut from.
        prompts: what is continued greedily, by so many tokens, after the measurement; none where nobody asks.
        continued_tokens: new tokens of each.
    """

    artifact: str
    engine: EngineSettings
    draft: str | None = None
    chunk_tokens: int
    batch_tokens: int
    requests: RequestSettings
    text_tokens: tuple[int, ...]
    prompts: tuple[tuple[int, ...], ...] = ()
    continued_tokens: int = 0


class Served(Record):
    """What came of it.

    Attributes:
        performance: on the requests.
        weights_bytes: weight bytes of the artifact.
        peak_bytes: largest growth of resident memory from before the engine was opened to the end of the measurement.
        continued: new tokens of each prompt.
    """

    performance: Performance
    weights_bytes: int
    peak_bytes: int
    continued: tuple[tuple[int, ...], ...] = ()


class ServeRequest(Record):
    """Everything that the process is told."""

    store: Path
    answer: Path
    job: ServeJob


class Answer(Record):
    """What a process that serves writes: its result as JSON, or why there is none."""

    result: str | None = None
    error: str | None = None


def served_alone(store: Store, job: ServeJob) -> Served:
    """Let a fresh process serve an artifact.

    Raises:
        EngineError: it did not work there, or the process died.
    """
    return asked(
        store,
        "tasks.release.alone",
        lambda path: ServeRequest(store=store.home, answer=path, job=job),
        Served,
    )


def asked(store: Store, module: str, request: Callable[[Path], Record], result: type[R]) -> R:
    """Let a fresh process serve, and read its result.

    Args:
        store: its scratch space takes the answer.
        module: one of ours, which calls `answer`; see `run_fresh`.
        request: what it is told, given the path that it writes its answer to.
        result: what it computes.

    Raises:
        EngineError: it did not work there, or the process died.
    """
    with store.scratch() as folder:
        path = folder / "answer.json"
        ended = run_fresh(module, request(path))
        if not path.is_file():
            raise EngineError(f"the process that served it did not answer; {ended}")
        said = Answer.model_validate_json(path.read_text(encoding="utf-8"))
    if said.result is None:
        raise EngineError(str(said.error))
    return result.model_validate_json(said.result)


def answer(path: Path, compute: Callable[[], Record]) -> None:
    """In the fresh process: compute the result and write it, or one line on why there is none.

    Args:
        path: as `asked` gave it.
        compute: serves.
    """
    try:
        said = Answer(result=compute().model_dump_json())
    except (EngineError, StoreError, MemoryError, OSError, ValueError) as error:
        said = Answer(error=f"{type(error).__name__}: {' '.join(str(error).split())}")
    path.write_text(said.model_dump_json(), encoding="utf-8")


def open_job(store: Store, job: ServeJob) -> Engine:
    """Open a job's engine on its artifact, and its draft's where it has one; the caller closes it.

    Raises:
        EngineError: it does not work.
        StoreError: an artifact is missing or damaged.
    """
    draft = None if job.draft is None else store.open(job.draft)
    return open_engine(
        store.open(job.artifact),
        job.engine,
        draft=draft,
        chunk_tokens=job.chunk_tokens,
        batch_tokens=job.batch_tokens,
    )


def serve(store: Store, job: ServeJob) -> Served:
    """Open an artifact, serve the requests, then continue the prompts.

    Raises:
        EngineError: it does not work.
        StoreError: the artifact is missing or damaged.
        ValueError: the text is too short for the requests.
    """
    import_engine(job.engine)
    with MemoryPeak(gpu=job.engine.device == "cuda") as peak:
        began_s = time.perf_counter()
        with open_job(store, job) as engine:
            load_s = time.perf_counter() - began_s
            performance = measure(engine, job.requests, job.text_tokens, load_s=load_s)
            held, peak_bytes = engine.memory(), peak.growth_bytes
            requests = [
                GenerationRequest(each, job.continued_tokens, ignore_eos=True) for each in job.prompts
            ]
            continued = tuple(made.tokens for made in engine.generate(requests)) if requests else ()
    return Served(
        performance=performance,
        weights_bytes=held.weights_bytes,
        peak_bytes=peak_bytes,
        continued=continued,
    )


def main(text: str) -> None:
    """Answer the request that stands on standard input."""
    request = ServeRequest.model_validate_json(text)
    answer(request.answer, lambda: serve(Store(request.store), request.job))


if __name__ == "__main__":
    main(sys.stdin.read())
