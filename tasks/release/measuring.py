"""A candidate as a thing that runs: built from a checkpoint, opened on its engine, measured on the configured requests."""

import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from configs.engine import EngineSettings
from configs.schema import RequestSettings
from configs.weights import WeightSettings
from tasks.compression.build import build_artifact, resolve_weights
from tasks.compression.build_cost import measured_build
from tasks.engines.open import open_engine
from tasks.engines.protocol import Engine
from tasks.engines.streaming import StreamingEngine
from tasks.engines.streaming_open import open_streaming
from tasks.models.checkpoint import read_architecture
from tasks.profiling.memory_budget import serving_budget
from tasks.quality.tokenizer import TextTokenizer
from tasks.release.alone import Served, ServeJob, served_alone
from tasks.release.candidate import Candidate, Measurement, Memory
from tasks.release.draft_memory import checkpoint_of, draft_budget
from tasks.release.greedy import NEW_TOKENS, greedy_prompts, keep_continuations
from tasks.release.machine import machine_digest
from tasks.release.quiet import quiet
from tasks.release.workspace import Workspace
from tasks.store.artifact import Artifact
from tasks.store.digest import code_digest, digest_of

logger = logging.getLogger(__name__)

MIB = 2**20


def make_candidate(
    workspace: Workspace,
    checkpoint: Artifact,
    engine: EngineSettings,
    weights: WeightSettings,
    note: str = "",
    grids: Artifact | None = None,
) -> Candidate:
    """Build the artifact of a checkpoint in a weight format and pair it with an engine configuration.

    Speculation is left out: it was turned on for another artifact, and pays, or does not, for each one anew. Of `grids` that are given,
    in a format that is built from some, the artifact is made; what that costs says nothing of the format, and is not remembered.

    Raises:
        CompressionError: the format is impossible for this model or engine.
    """
    engine = engine.model_copy(update={"speculation": None})
    calibration = [section.text for section in workspace.splits.calibration]
    declared = (workspace.store, checkpoint, engine.engine, weights, calibration)

    def build() -> Artifact:
        stored = resolve_weights(*declared)
        cached = engine.has_integer_cache
        return build_artifact(*declared[:3], stored, calibration, integer_cache=cached, grids=grids)

    # The cost is that of what was declared: learning which layers need 8 bits is part of it.
    artifact = build() if grids is not None else measured_build(*declared, build)
    stored = resolve_weights(*declared)
    name = f"{engine.engine} {stored.label}, {engine.serving_label}{note}"
    return Candidate(name=name, artifact=artifact.digest, engine=engine, weights=stored.label, format=stored)


def open_candidate(workspace: Workspace, candidate: Candidate, *, chunk_tokens: int | None = None) -> Engine:
    """Open a candidate's engine on its verified artifact, and its draft's where it speculates with one.

    Args:
        workspace: of the rollout.
        candidate: what is opened.
        chunk_tokens: pieces in which a sequence is scored; None: those of `quality.score_chunk_tokens`.

    Raises:
        EngineError: it does not work.
        StoreError: an artifact is missing or damaged.
    """
    quality = workspace.config.quality
    return open_engine(
        workspace.store.open(candidate.artifact),
        candidate.engine,
        draft=None if candidate.draft is None else workspace.store.open(candidate.draft),
        chunk_tokens=quality.score_chunk_tokens if chunk_tokens is None else chunk_tokens,
        batch_tokens=quality.batch_tokens,
    )


def open_served(workspace: Workspace, candidate: Candidate, sequence_tokens: int) -> StreamingEngine:
    """Open a candidate for serving requests of up to `sequence_tokens` tokens; the caller closes it.

    Raises:
        EngineError: it does not work.
        StoreError: the artifact is missing or damaged.
    """
    artifact = workspace.store.open(candidate.artifact)
    return open_streaming(artifact, candidate.engine, sequence_tokens=sequence_tokens)


def source_candidate(workspace: Workspace, engine: EngineSettings) -> Candidate:
    """The source model, unquantized, on an engine."""
    return make_candidate(workspace, workspace.source, engine, WeightSettings())


def prompt_tokens(workspace: Workspace) -> list[int]:
    """Token ids that prompts are cut from: the calibration text."""
    return list(_prompt_tokens(workspace.source.folder, tuple(s.text for s in workspace.splits.calibration)))


def measure_candidate(
    workspace: Workspace, candidate: Candidate, *, with_continuations: bool = False
) -> Measurement:
    """Speed and memory on the configured requests, in a process of its own, remembered.

    Args:
        workspace: of the rollout.
        candidate: what is measured.
        with_continuations: its greedy continuations (`tasks.release.greedy`) are asked for while its engine is open, and
            remembered; not where the measurement was remembered.

    Raises:
        EngineError: it does not work.
        StoreError: the artifact is missing or damaged.
    """
    return measure_on(workspace, candidate, workspace.config.requests, with_continuations=with_continuations)


def measure_on(
    workspace: Workspace,
    candidate: Candidate,
    requests: RequestSettings,
    *,
    with_continuations: bool = False,
) -> Measurement:
    """The same on other requests; a text that is shorter than a prompt is repeated."""
    parts = [candidate.artifact, candidate.engine, requests, _prompts_digest(workspace), machine_digest()]
    code = code_digest("tasks/engines", "tasks/serving", "tasks/release/alone.py")

    def compute() -> Measurement:
        workspace.store.open(candidate.artifact)  # what is damaged is told here, not by a child
        logger.info("  measuring %s", candidate.name)
        job = serve_job(workspace, candidate, requests)
        if with_continuations:
            job = job.model_copy(
                update={"prompts": greedy_prompts(workspace), "continued_tokens": NEW_TOKENS}
            )
        with quiet(workspace.store):
            served = served_alone(workspace.store, job)
        if with_continuations:
            keep_continuations(workspace, candidate, served.continued)
        return _measurement(workspace, candidate, requests, served)

    return workspace.store.once(f"measurement-{digest_of([*parts, code])}", Measurement, compute)[0]


def serve_job(workspace: Workspace, candidate: Candidate, requests: RequestSettings) -> ServeJob:
    """What a process of its own has to know to serve a candidate; a text that is shorter than a prompt is repeated."""
    quality, text = workspace.config.quality, prompt_tokens(workspace)
    return ServeJob(
        artifact=candidate.artifact,
        engine=candidate.engine,
        draft=candidate.draft,
        chunk_tokens=quality.score_chunk_tokens,
        batch_tokens=quality.batch_tokens,
        requests=requests,
        text_tokens=tuple(text * -(-requests.prompt_tokens // len(text))),
    )


def _measurement(
    workspace: Workspace, candidate: Candidate, requests: RequestSettings, served: Served
) -> Measurement:
    # Its own checkpoint's shape: a student has fewer layers than the source.
    checkpoint = checkpoint_of(workspace.store, workspace.store.open(candidate.artifact))
    predicted = serving_budget(read_architecture(checkpoint), candidate.format, candidate.engine, requests)
    drafting = draft_budget(workspace.store, candidate, requests)
    memory = Memory(
        weights_mib=served.weights_bytes / MIB,
        kv_mib=(predicted.kv_cache_bytes + (drafting.kv_cache_bytes if drafting else 0)) / MIB,
        peak_mib=served.peak_bytes / MIB,
        predicted_mib=(predicted.total_bytes + (drafting.total_bytes if drafting else 0)) / MIB,
    )
    logger.info("  peak %.0f MiB (predicted %.0f)", memory.peak_mib, memory.predicted_mib)
    return Measurement(performance=served.performance, memory=memory)


@cache
def _prompt_tokens(folder: Path, texts: Sequence[str]) -> tuple[int, ...]:
    tokenizer = TextTokenizer(folder)
    return tuple(token for text in texts for token in tokenizer.encode(text, add_special_tokens=False))


def _prompts_digest(workspace: Workspace) -> str:
    return digest_of([section.text for section in workspace.splits.calibration])
