"""What every stage does with a candidate: open it, measure it, screen it on the search split, judge it on the gate split.

Each of these is remembered under the digest of what it depends on, so that a killed search loses the candidate in progress and
nothing else, and two stages that look at the same candidate pay once.
"""

import logging
import math
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from configs.engine import EngineSettings
from configs.quality import QualitySettings
from configs.weights import WeightSettings
from tasks.compression.build import build_artifact
from tasks.engines.open import import_engine, open_engine
from tasks.engines.protocol import Engine
from tasks.profiling.memory_budget import serving_budget
from tasks.quality.gate import judge
from tasks.quality.samples import Samples
from tasks.quality.score import SplitName, samples_of, score_candidate, score_reference
from tasks.quality.tokenizer import TextTokenizer
from tasks.quality.verdict import GateVerdict
from tasks.release.candidate import Candidate, Measurement, Memory
from tasks.release.machine import machine_digest
from tasks.release.workspace import Workspace
from tasks.serving.latency import measure
from tasks.serving.memory_peak import MemoryPeak
from tasks.store.artifact import Artifact
from tasks.store.digest import code_digest, digest_of
from tasks.store.errors import StoreError

logger = logging.getLogger(__name__)

MIB = 2**20
GateKind = Literal["preserve", "tasks"]


def make_candidate(
    workspace: Workspace,
    checkpoint: Artifact,
    engine: EngineSettings,
    weights: WeightSettings,
    note: str = "",
) -> Candidate:
    """Build the artifact of a checkpoint in a weight format and pair it with an engine configuration.

    Raises:
        CompressionError: the format is impossible for this model or engine.
    """
    calibration = [section.text for section in workspace.splits.calibration]
    artifact = build_artifact(workspace.store, checkpoint, engine.engine, weights, calibration)
    name = f"{engine.engine} {weights.label}, {engine.kv_cache} cache{note}"
    return Candidate(
        name=name, artifact=artifact.digest, engine=engine, weights=weights.label, format=weights
    )


def open_candidate(workspace: Workspace, candidate: Candidate) -> Engine:
    """Open a candidate's engine on its verified artifact.

    Raises:
        EngineError: it does not work.
        StoreError: the artifact is missing or damaged.
    """
    quality = workspace.config.quality
    return open_engine(
        workspace.store.open(candidate.artifact),
        candidate.engine,
        chunk_tokens=quality.score_chunk_tokens,
        batch_tokens=quality.batch_tokens,
    )


def prompt_tokens(workspace: Workspace) -> list[int]:
    """Token ids that prompts are cut from: the calibration text."""
    return list(_prompt_tokens(workspace.source.folder, tuple(s.text for s in workspace.splits.calibration)))


def measure_candidate(workspace: Workspace, candidate: Candidate) -> Measurement:
    """Speed and memory on the configured requests, remembered.

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
        f"measurement-{key}", Measurement, lambda: _measure(workspace, candidate)
    )
    return measurement


def score(workspace: Workspace, candidate: Candidate, split: SplitName, quality: QualitySettings) -> str:
    """Score a candidate against the source on what `quality.margins` ask for; return the samples' key in the store.

    Raises:
        EngineError: it does not work.
        QualityError: the scores would not be honest.
    """
    score_source(workspace, split, quality)
    key = _samples_key(workspace, candidate, split, quality)

    def compute() -> Samples:
        logger.info("  scoring %s on the %s items", candidate.name, split)
        with open_candidate(workspace, candidate) as engine:
            return score_candidate(
                engine,
                workspace.store.open(candidate.artifact).folder,
                quality,
                workspace.splits,
                workspace.pack,
                split,
                logits=_logits_path(workspace, split, quality),
                partial=_partial(workspace, candidate, split, quality),
                with_tasks=split == "gate",
            )

    workspace.store.once(key, Samples, compute)
    return key


def score_source(workspace: Workspace, split: SplitName, quality: QualitySettings) -> str:
    """Score the source model at full precision, once for all candidates; return the samples' key in the store.

    Raises:
        EngineError: the reference engine does not work.
        QualityError: the scores would not be honest.
    """
    source = source_candidate(workspace, quality.reference)
    key = _samples_key(workspace, source, split, quality)
    logits = _logits_path(workspace, split, quality)

    def compute() -> Samples:
        logger.info("  scoring the source on the %s items", split)
        with open_candidate(workspace, source) as engine:
            return score_reference(
                engine,
                workspace.source.folder,
                quality,
                workspace.splits,
                workspace.pack,
                split,
                logits=logits,
                partial=_partial(workspace, source, split, quality),
                with_tasks=split == "gate",
            )

    if logits.is_file():
        workspace.store.once(key, Samples, compute)
    else:
        workspace.store.remember(key, compute())
    return key


def source_candidate(workspace: Workspace, engine: EngineSettings) -> Candidate:
    """The source model, unquantized, on an engine."""
    return make_candidate(workspace, workspace.source, engine, WeightSettings())


def screen_candidate(workspace: Workspace, candidate: Candidate) -> dict[str, float]:
    """Perplexity and KL on the search split: cheap, never judged on."""
    quality = workspace.config.quality
    reference = samples(workspace, score_source(workspace, "search", quality))
    scored = samples(workspace, score(workspace, candidate, "search", quality))
    loss, tokens = _totals(scored, "perplexity")
    before, _ = _totals(reference, "perplexity")
    divergence, _ = _totals(scored, "kl")
    flips, _ = _totals(scored, "flips")
    return {
        "kl_nats": divergence / tokens,
        "perplexity_delta_fraction": math.expm1((loss - before) / tokens),
        "flip_rate": flips / tokens,
    }


def judge_candidate(
    workspace: Workspace, candidate: Candidate, kind: GateKind
) -> tuple[GateVerdict, dict[str, str]]:
    """The gate's verdict on a candidate, against the source model; an INCONCLUSIVE one draws up to `tasks.limit` items.

    Args:
        workspace: of the rollout.
        candidate: what is proposed.
        kind: "preserve" gates perplexity, KL and accuracy; "tasks", for a model that was changed on purpose, accuracy alone.

    Returns:
        The verdict, and the keys of the samples behind it by role.
    """
    quality = workspace.config.quality
    limit = quality.tasks.limit or quality.tasks.items
    draws = sorted({quality.tasks.items, limit})
    margins = quality.judged(kind)
    for items in draws:
        drawn = quality.model_copy(update={"tasks": quality.tasks.model_copy(update={"items": items})})
        keys = {
            "reference": score_source(workspace, "gate", drawn),
            "candidate": score(workspace, candidate, "gate", drawn),
        }
        verdict = judge(
            samples(workspace, keys["reference"]),
            samples(workspace, keys["candidate"]),
            margins,
            alpha=quality.alpha,
            tries=quality.tries,
            looks=len(draws),
        )
        if verdict.verdict != "INCONCLUSIVE":
            break
    return verdict, keys


def samples(workspace: Workspace, key: str) -> Samples:
    """Samples that were scored before.

    Raises:
        StoreError: they are not in the store any more.
    """
    found = workspace.store.recall(key, Samples)
    if found is None:
        raise StoreError(f"samples {key} are not in the store any more; run again to score them")
    return found


def score_text(workspace: Workspace, candidate: Candidate, split: SplitName) -> str:
    """Score the text alone, without the accuracy tasks; return the samples' key in the store."""
    quality = workspace.config.quality
    margins = quality.margins.model_copy(update={"accuracy": None})
    return score(workspace, candidate, split, quality.model_copy(update={"margins": margins}))


def held_out_samples(scored: Samples) -> Samples:
    """The perplexity rows alone: the held-out loss of one model."""
    return samples_of(row for row in scored.rows if row.metric == "perplexity")


def _measure(workspace: Workspace, candidate: Candidate) -> Measurement:
    predicted = serving_budget(
        workspace.architecture, candidate.format, candidate.engine, workspace.config.requests
    )
    logger.info("  measuring %s", candidate.name)
    tokens = prompt_tokens(workspace)
    import_engine(candidate.engine.engine)
    with MemoryPeak() as peak:
        began_s = time.perf_counter()
        with open_candidate(workspace, candidate) as engine:
            load_s = time.perf_counter() - began_s
            performance = measure(engine, workspace.config.requests, tokens, load_s=load_s)
            held = engine.memory()
    return Measurement(
        performance=performance,
        memory=Memory(
            weights_mib=held.weights_bytes / MIB,
            kv_mib=predicted.kv_cache_bytes / MIB,
            peak_mib=peak.growth_bytes / MIB,
            predicted_mib=predicted.total_bytes / MIB,
        ),
    )


def _samples_key(
    workspace: Workspace, candidate: Candidate, split: SplitName, quality: QualitySettings
) -> str:
    """Everything a score depends on."""
    asked = []
    if split == "gate" and quality.margins.accuracy is not None:
        asked.append(quality.tasks.model_dump(mode="json", exclude={"limit"}))
    return f"samples-{digest_of([_scoring_digest(workspace, candidate, split, quality), asked])}"


def _scoring_digest(
    workspace: Workspace, candidate: Candidate, split: SplitName, quality: QualitySettings
) -> str:
    """What every single score depends on, whichever items are asked for.

    The scheduler is no part of it: scoring runs the served graph with the served cache type, but without the scheduler.
    """
    engine = candidate.engine.model_dump(mode="json", exclude={"scheduler", "use_kv_cache"})
    batches = [quality.score_chunk_tokens, quality.batch_tokens, quality.seed]
    reference = source_candidate(workspace, quality.reference)
    code = code_digest("tasks/engines", "tasks/quality", "tasks/data")
    items = [split, workspace.items_digest, reference.artifact, reference.engine]
    return digest_of([candidate.artifact, engine, batches, items, machine_digest(), code])


def _logits_path(workspace: Workspace, split: SplitName, quality: QualitySettings) -> Path:
    source = source_candidate(workspace, quality.reference)
    return workspace.derived / f"logits-{_scoring_digest(workspace, source, split, quality)}"


def _partial(workspace: Workspace, candidate: Candidate, split: SplitName, quality: QualitySettings) -> Path:
    """Kept after the end, too: a later look at more items goes on from here."""
    return workspace.derived / f"scores-{_scoring_digest(workspace, candidate, split, quality)}.jsonl"


def _totals(scored: Samples, metric: str) -> tuple[float, float]:
    rows = [row for row in scored.rows if row.metric == metric]
    return sum(row.value for row in rows), sum(row.weight for row in rows)


@cache
def _prompt_tokens(folder: Path, texts: Sequence[str]) -> tuple[int, ...]:
    tokenizer = TextTokenizer(folder)
    return tuple(token for text in texts for token in tokenizer.encode(text, add_special_tokens=False))


def _prompts_digest(workspace: Workspace) -> str:
    return digest_of([section.text for section in workspace.splits.calibration])
