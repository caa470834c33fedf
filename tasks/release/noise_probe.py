"""The batch-size probe: a candidate scored twice, in batches of another size; margins within that noise are refused.

The noise is that of a weight format on an engine configuration, so it is probed once for both. Answers that change are rare: the
probe begins with as many items as prove a margin when nothing changes, and draws more where something does.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from configs.quality import Margins
from tasks.engines.protocol import Engine, Generation, GenerationRequest, ScoreRequest, TokenScores
from tasks.quality.divergence import diverge
from tasks.quality.noise_floor import MarginBelowNoise, NoiseFloor, noise_floor, refuse_below_floor
from tasks.quality.sample_set import samples_of
from tasks.quality.samples import Samples
from tasks.quality.score_log import ScoreLog
from tasks.quality.tokenizer import TextTokenizer
from tasks.release.candidate import Candidate
from tasks.release.gate_tasks import judged_tasks, task_set
from tasks.release.machine import machine_digest
from tasks.release.measuring import open_candidate
from tasks.release.metrics import metric_name
from tasks.release.scoring import context_tokens, search_logits
from tasks.release.workspace import Workspace
from tasks.store.digest import code_digest, digest_of
from tasks.store.record import Record

logger = logging.getLogger(__name__)

OTHER_BATCH = 5  # requests of a batch the second time: neither a power of two nor what fills the engine's own
PROVING = 3.3  # items times margin at which no change at all lies below the margin at 95 %
GROWTH = 3


class Noise(Record):
    """What the batch size alone changes."""

    floors: tuple[NoiseFloor, ...]


class OtherBatches:
    """An engine that is asked a few requests at a time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def score(self, requests: Iterable[ScoreRequest], *, with_logits: bool = False) -> Iterator[TokenScores]:
        """See `Engine.score`."""
        asked = iter(requests)
        while batch := list(islice(asked, OTHER_BATCH)):
            yield from self._engine.score(batch, with_logits=with_logits)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """See `Engine.generate`."""
        batches = (requests[begin : begin + OTHER_BATCH] for begin in range(0, len(requests), OTHER_BATCH))
        return [made for batch in batches for made in self._engine.generate(batch)]


def check_noise(workspace: Workspace, candidate: Candidate, margins: Margins) -> tuple[NoiseFloor, ...]:
    """Probe a candidate's format and engine, or recall the probe.

    Raises:
        MarginBelowNoise: a margin is not above the floor.
        EngineError, QualityError: the candidate cannot be scored.
    """
    quality = workspace.config.quality
    engine = candidate.engine.model_dump(mode="json", exclude={"scheduler"})
    code = code_digest("tasks/engines", "tasks/quality", "tasks/release/noise_probe.py")
    asked = quality.model_dump(
        mode="json", exclude={"text", "alpha", "power", "discordance", "tries", "sequential"}
    )
    parts = [
        workspace.source.digest,
        workspace.items_digest,
        candidate.format,
        engine,
        asked,
        machine_digest(),
        code,
    ]
    key = digest_of(parts)
    found, _ = workspace.store.once(f"noise-{key}", Noise, lambda: _probe(workspace, candidate))
    refuse_below_floor(found.floors, margins)
    return found.floors


def noise_metrics(floors: tuple[NoiseFloor, ...]) -> dict[str, float]:
    """Floors under the names of the MLflow contract."""
    return {
        metric_name("quality", floor.task, f"{floor.metric}_noise_floor"): floor.floor for floor in floors
    }


def _probe(workspace: Workspace, candidate: Candidate) -> Noise:
    margins, tasks = workspace.config.quality.margins, judged_tasks(workspace)
    logger.info("  probing the noise of %s", candidate.name)
    with open_candidate(workspace, candidate) as engine:
        other: Any = OtherBatches(engine)
        text = noise_floor(_text(workspace, candidate, engine), _text(workspace, candidate, other))
        floors = {(floor.task, floor.metric): floor for floor in text}
        for name, size in tasks.items():
            items = math.ceil(PROVING / (margins.accuracy or 1.0))
            while True:
                count = min(items, size)
                rows = [_task(workspace, candidate, each, name, count) for each in (engine, other)]
                floors |= {(floor.task, floor.metric): floor for floor in noise_floor(*rows)}
                try:
                    refuse_below_floor(tuple(f for f in floors.values() if f.task == name), margins)
                except MarginBelowNoise:
                    if count < size:
                        items *= GROWTH
                        continue
                break
    return Noise(floors=tuple(floors.values()))


def _text(workspace: Workspace, candidate: Candidate, engine: Engine) -> Samples:
    tokenizer = TextTokenizer(workspace.store.open(candidate.artifact).folder)
    logits = search_logits(workspace)
    return samples_of(diverge(engine, tokenizer, workspace.splits.search, logits, ScoreLog(None)))


def _task(workspace: Workspace, candidate: Candidate, engine: Engine, name: str, items: int) -> Samples:
    folder = workspace.store.open(candidate.artifact).folder
    scored = task_set(workspace).score(
        engine, TextTokenizer(folder), {name: items}, max_tokens=context_tokens(folder)
    )
    return samples_of(scored.rows)
