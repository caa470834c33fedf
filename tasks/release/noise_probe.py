"""The batch-size probe: some of what the gate scored is scored once more in batches of another size, and margins are held against it.

What it claims, of a weight format on an engine configuration: at 95 % confidence, however often it draws, a task's answers change
by the batch size alone in a share of its items that lies below the accuracy margin; and the text's perplexity and KL move by less than
their margins, on the sections that are probed, whichever of them moved most. It says nothing of other formats or engines, and it is
probed once for both. The scores behind the verdict are one of its two sides, so that only the other one is scored.

The other batches hold what has one context whole, as the engine's own do: how an item is fed does not depend on what stands beside
it, so that on a graph without padding hardly a lead moves.

A few items are probed first: how far the lead of the right choice moved, beside the leads of all judged items, bounds the answers
that could tip (`tasks.quality.tipping`). Where that does not prove the margin, those nearest to a tie are scored again, too: what
changed among them is all that changed, but for a tenth of the margin. Where that does not prove it either, or there are no leads, the
answers that change are counted: they are rare, so the count begins with as many items as prove a margin when nothing changes, and
draws as many more as would prove it where something does.
"""

import logging
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from configs.quality import Margins
from tasks.engines.protocol import Engine, Generation, GenerationRequest, ScoreRequest, TokenScores
from tasks.engines.target_scores import MIN_SHARED_TOKENS
from tasks.quality.divergence import diverge
from tasks.quality.noise_floor import NoiseFloor, noise_floor, refuse_below_floor
from tasks.quality.sample_set import joined_samples, samples_of
from tasks.quality.samples import Samples
from tasks.quality.score_log import ScoreLog
from tasks.quality.tipping import lead_movement, near_tie_floor, near_ties, tipping_floor
from tasks.quality.tokenizer import TextTokenizer
from tasks.release.candidate import Candidate
from tasks.release.gate_tasks import judged_tasks, task_set
from tasks.release.machine import machine_digest
from tasks.release.metrics import metric_name
from tasks.release.scoring import context_tokens, gate_logits, samples
from tasks.release.workspace import Workspace
from tasks.store.digest import code_digest, digest_of
from tasks.store.record import Record

logger = logging.getLogger(__name__)

OTHER_BATCH = (
    5  # requests of a batch the second time, or more: no power of two, nor what fills the engine's own
)
PROBED_SECTIONS = (
    12  # spread over the gate text: a mean of all cannot move by more than the one that moved most
)
ALPHA = 0.05
"""Of all that is said of a task together."""

MOVEMENT_ALPHA, NEAR_ALPHA = 0.1 * ALPHA, 0.7 * ALPHA
"""Of the limit of the leads' movement, and of the count among near ties. Draws without leads have the rest of it or, where no answer
has a lead, all: the first is judged at half of that, each further one at half of the one before."""

UNSEEN = 0.1
"""Of the margin: what may tip of the items that are not near a tie."""

LED_ITEMS = 24
"""Items whose leads are watched first."""

NO_MARGIN = 0.5
"""Taken where accuracy has no margin: a few items then say what the floor is."""

MORE = 1.15  # than what would just do at the level of this draw: the next one's is half of it


class Noise(Record):
    """What the batch size alone changes."""

    floors: tuple[NoiseFloor, ...]


class OtherBatches:
    """An engine that is asked a few requests at a time; those of one context stay together, as in the engine's own batches."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def score(self, requests: Iterable[ScoreRequest], *, with_logits: bool = False) -> Iterator[TokenScores]:
        """See `Engine.score`."""
        batch: list[ScoreRequest] = []
        for request in requests:
            is_shared = len(request.context) >= MIN_SHARED_TOKENS and batch
            together = is_shared and request.context == batch[-1].context
            if len(batch) >= OTHER_BATCH and not together:
                yield from self._engine.score(batch, with_logits=with_logits)
                batch = []
            batch.append(request)
        if batch:
            yield from self._engine.score(batch, with_logits=with_logits)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """See `Engine.generate`."""
        batches = (requests[begin : begin + OTHER_BATCH] for begin in range(0, len(requests), OTHER_BATCH))
        return [made for batch in batches for made in self._engine.generate(batch)]


def check_noise(
    workspace: Workspace, candidate: Candidate, margins: Margins, scored: str, opened: Callable[[], Engine]
) -> tuple[NoiseFloor, ...]:
    """Probe a candidate's format and engine, or recall the probe.

    Args:
        workspace: of the rollout.
        candidate: what passed the gate.
        margins: that its floors are held against.
        scored: key of the candidate's samples behind the verdict.
        opened: opens the engine they came from, where there is something to probe; its owner closes it.

    Raises:
        MarginBelowNoise: a margin is not above the floor.
        EngineError, QualityError: the candidate cannot be scored.
    """
    quality = workspace.config.quality
    engine = candidate.engine.model_dump(mode="json", exclude={"scheduler", "speculation"})
    engine["threads"] = candidate.engine.own_threads
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
    found, _ = workspace.store.once(
        f"noise-{key}", Noise, lambda: _probe(workspace, candidate, scored, opened())
    )
    refuse_below_floor(found.floors, margins)
    return found.floors


def noise_metrics(floors: tuple[NoiseFloor, ...]) -> dict[str, float]:
    """Floors under the names of the MLflow contract."""
    return {
        metric_name("quality", floor.task, f"{floor.metric}_noise_floor"): floor.floor for floor in floors
    }


def _probe(workspace: Workspace, candidate: Candidate, scored: str, engine: Engine) -> Noise:
    tasks = judged_tasks(workspace)
    known = samples(workspace, scored)
    logger.info("  probing the noise of %s", candidate.name)
    other: Any = OtherBatches(engine)
    again = _text(workspace, candidate, other)
    floors = {(floor.task, floor.metric): floor for floor in noise_floor(_of_same(known, again), again)}
    for name, size in tasks.items():
        own = samples_of(
            (row for row in known.rows if row.task == name),
            (note for note in known.notes if note.task == name),
        )
        for floor in _of_task(workspace, candidate, (engine, other), name, size, own):
            floors[floor.task, floor.metric] = floor
    return Noise(floors=tuple(floors.values()))


def _of_task(
    workspace: Workspace,
    candidate: Candidate,
    engines: tuple[Engine, Engine],
    name: str,
    size: int,
    first: Samples,
) -> tuple[NoiseFloor, ...]:
    """The floors of one task; `engines` score as the gate did and in other batches, `first` is what the gate has, with notes."""
    margin = workspace.config.quality.margins.accuracy or NO_MARGIN
    judged = len({row.item for row in first.rows})
    asked = min(LED_ITEMS, judged)
    parts = [_task(workspace, candidate, engines[1], name, asked, 0)]
    movement = lead_movement(first, parts[0], alpha=MOVEMENT_ALPHA)
    level = (ALPHA if movement is None else ALPHA - MOVEMENT_ALPHA - NEAR_ALPHA) / 2
    count = max(asked, min(_fewest(level, margin), size))
    if movement is not None:
        led, near = tipping_floor(movement), near_ties(movement, UNSEEN * margin)
        if led.floor >= margin and 0 < len(near) < count - asked:
            more = _task(workspace, candidate, engines[1], name, judged, asked, near)
            led = near_tie_floor(movement, first, joined_samples([parts[0], more]), alpha=NEAR_ALPHA)
        if led.floor < margin:
            return (led,)
    while True:
        if count > asked:
            parts.append(_task(workspace, candidate, engines[1], name, count, asked))
        again = joined_samples(parts)
        if count > judged:
            more = _task(workspace, candidate, engines[0], name, count, judged)
            first, judged = joined_samples([first, more]), count
        floors = noise_floor(_of_same(first, again), again, alpha=level)
        worst = max((floor.floor for floor in floors), default=0.0)
        if count == size or worst < margin:
            return floors
        level /= 2
        # With as many changes among them, so many items would prove the margin.
        asked, count = count, min(max(count + 1, math.ceil(MORE * count * worst / margin)), size)


def _fewest(level: float, margin: float) -> int:
    """Items that prove the margin where none of them changes: (1 - margin)^n is below the level."""
    return math.ceil(math.log(level) / math.log1p(-margin)) + 1


def _of_same(known: Samples, again: Samples) -> Samples:
    """The known samples of the items that were scored again."""
    wanted = {(row.task, row.metric, row.item) for row in again.rows}
    return samples_of(row for row in known.rows if (row.task, row.metric, row.item) in wanted)


def _text(workspace: Workspace, candidate: Candidate, engine: Engine) -> Samples:
    tokenizer = TextTokenizer(workspace.store.open(candidate.artifact).folder)
    gate = workspace.splits.gate
    sections = gate[:: max(1, len(gate) // PROBED_SECTIONS)][:PROBED_SECTIONS]
    return samples_of(diverge(engine, tokenizer, sections, gate_logits(workspace), ScoreLog(None)))


def _task(
    workspace: Workspace,
    candidate: Candidate,
    engine: Engine,
    name: str,
    items: int,
    after: int,
    among: Collection[str] | None = None,
) -> Samples:
    """The items of a task from `after` on, `items` in all; of these the ones that are named."""
    folder = workspace.store.open(candidate.artifact).folder
    scored = task_set(workspace).score(
        engine, TextTokenizer(folder), {name: items}, max_tokens=context_tokens(folder), after=after, among=among
    )  # fmt: skip
    return samples_of(scored.rows, scored.notes)
