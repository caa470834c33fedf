"""A candidate as a thing that runs: built from a checkpoint, opened on its engine, measured on the configured requests."""

import logging
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from configs.engine import EngineSettings
from configs.weights import WeightSettings
from tasks.compression.build import build_artifact, resolve_weights
from tasks.compression.build_cost import measured_build
from tasks.engines.open import import_engine, open_engine
from tasks.engines.protocol import Engine
from tasks.profiling.memory_budget import serving_budget
from tasks.quality.tokenizer import TextTokenizer
from tasks.release.candidate import Candidate, Measurement, Memory
from tasks.release.draft_memory import draft_budget
from tasks.release.machine import machine_digest
from tasks.release.workspace import Workspace
from tasks.serving.latency import measure
from tasks.serving.memory_peak import MemoryPeak
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
) -> Candidate:
    """Build the artifact of a checkpoint in a weight format and pair it with an engine configuration.

    Speculation is left out: it was turned on for another artifact, and pays, or does not, for each one anew.

    Raises:
        CompressionError: the format is impossible for this model or engine.
    """
    engine = engine.model_copy(update={"speculation": None})
    calibration = [section.text for section in workspace.splits.calibration]
    declared = (workspace.store, checkpoint, engine.engine, weights, calibration)

    def build() -> Artifact:
        stored = resolve_weights(*declared)
        cached = engine.has_integer_cache
        return build_artifact(*declared[:3], stored, calibration, integer_cache=cached)

    # The cost is that of what was declared: learning which layers need 8 bits is part of it.
    artifact = measured_build(*declared, build)
    stored = resolve_weights(*declared)
    name = f"{engine.engine} {stored.label}, {engine.kv_cache} cache{note}"
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


def source_candidate(workspace: Workspace, engine: EngineSettings) -> Candidate:
    """The source model, unquantized, on an engine."""
    return make_candidate(workspace, workspace.source, engine, WeightSettings())


def prompt_tokens(workspace: Workspace) -> list[int]:
    """Token ids that prompts are cut from: the calibration text."""
    return list(_prompt_tokens(workspace.source.folder, tuple(s.text for s in workspace.splits.calibration)))


def measure_candidate(
    workspace: Workspace, candidate: Candidate, while_open: Callable[[Engine], object] = lambda engine: None
) -> Measurement:
    """Speed and memory on the configured requests, remembered.

    Args:
        workspace: of the rollout.
        candidate: what is measured.
        while_open: what else its engine is asked, after the measurement; not called where that was remembered.

    Raises:
        EngineError: it does not work.
    """
    requests = workspace.config.requests
    key = digest_of(
        [
            candidate.artifact,
            candidate.engine,
            requests,
            _prompts_digest(workspace),
            machine_digest(),
            code_digest("tasks/engines", "tasks/serving"),
        ]
    )
    measurement, _ = workspace.store.once(
        f"measurement-{key}", Measurement, lambda: _measure(workspace, candidate, while_open)
    )
    return measurement


def _measure(
    workspace: Workspace, candidate: Candidate, while_open: Callable[[Engine], object]
) -> Measurement:
    requests = workspace.config.requests
    predicted = serving_budget(workspace.architecture, candidate.format, candidate.engine, requests)
    drafting = draft_budget(workspace.store, candidate, requests)
    logger.info("  measuring %s", candidate.name)
    tokens = prompt_tokens(workspace)
    import_engine(candidate.engine.engine)
    with MemoryPeak() as peak:
        began_s = time.perf_counter()
        with open_candidate(workspace, candidate) as engine:
            load_s = time.perf_counter() - began_s
            performance = measure(engine, workspace.config.requests, tokens, load_s=load_s)
            held, peak_bytes = engine.memory(), peak.growth_bytes
            while_open(engine)
    return Measurement(
        performance=performance,
        memory=Memory(
            weights_mib=held.weights_bytes / MIB,
            kv_mib=(predicted.kv_cache_bytes + (drafting.kv_cache_bytes if drafting else 0)) / MIB,
            peak_mib=peak_bytes / MIB,
            predicted_mib=(predicted.total_bytes + (drafting.total_bytes if drafting else 0)) / MIB,
        ),
    )


@cache
def _prompt_tokens(folder: Path, texts: Sequence[str]) -> tuple[int, ...]:
    tokenizer = TextTokenizer(folder)
    return tuple(token for text in texts for token in tokenizer.encode(text, add_special_tokens=False))


def _prompts_digest(workspace: Workspace) -> str:
    return digest_of([section.text for section in workspace.splits.calibration])
