"""Text for calibration, adaptation, perplexity and tasks: sections, split by topic into disjoint parts.

The parts never share a topic, so nothing the model is calibrated or adapted on stands next to what it is
judged on. Pieces are counted in characters, not tokens: the split must be the same for every tokenizer.
"""

import hashlib
import json
import random
from collections.abc import Iterable
from typing import Literal

from configs.quality import TextSettings
from tasks.data.prose import jsonl_topics, pydoc_topics, sections_of
from tasks.data.text_error import TextError
from tasks.store.record import Record

PartName = Literal["train", "calibration", "search", "gate", "tasks_search", "tasks_gate"]
Parts = dict[PartName, list["Section"]]
# The parts that share topics, and so stand on one side of the split.
SIDES: tuple[tuple[PartName, ...], ...] = (
    ("train",),
    ("calibration",),
    ("search", "tasks_search"),
    ("gate", "tasks_gate"),
)
# Shares of what is left once calibration, search and gate have what they ask for; train gets the rest. A few
# thousand tokens of training text are enough for the demo; the tasks need thousands of words not trained on.
TASKS_GATE_SHARE, TASKS_SEARCH_SHARE = 0.3, 0.1
# A topic that holds more of the text than this cannot be kept on one side of a split.
LARGEST_TOPIC_SHARE = 0.5


class Section(Record):
    """A piece of prose of at most `section_characters` characters.

    Attributes:
        id: topic and number, unique in the source.
        topic: the document it was cut from.
        text: paragraphs separated by an empty line.
    """

    id: str
    topic: str
    text: str


class TextSplits(Record):
    """Disjoint parts of one text.

    Attributes:
        train: for adaptation and distillation.
        calibration: for quantization.
        search: perplexity and KL while candidates are searched.
        gate: perplexity and KL of the gate; its sections are the clusters of the test.
        digest: sha256 of all parts.
        tasks_search: more held-out sections; search items of text tasks are cut from these and from `search`.
        tasks_gate: more held-out sections; gate items of text tasks are cut from these and from `gate`.
        by_topic: whether no topic stands on two sides; false only where the text has too few topics.
    """

    train: tuple[Section, ...]
    calibration: tuple[Section, ...]
    search: tuple[Section, ...]
    gate: tuple[Section, ...]
    digest: str
    tasks_search: tuple[Section, ...] = ()
    tasks_gate: tuple[Section, ...] = ()
    by_topic: bool = True


def split_text(settings: TextSettings, seed: int) -> TextSplits:
    """Read the text, cut it into sections and split them; the same settings, seed and source give the same.

    Raises:
        TextError: the source cannot be read, or has too few sections.
    """
    topics = pydoc_topics() if settings.source == "pydoc" else jsonl_topics(settings.source)
    sections = {
        topic: [
            Section(id=f"{topic}-{number:03d}", topic=topic, text=text)
            for number, text in enumerate(sections_of(paragraphs, settings.section_characters))
        ]
        for topic, paragraphs in topics.items()
    }
    targets = _targets(settings, sum(map(len, sections.values())))
    rng = random.Random(f"{seed}:text")
    by_topic = _assign_topics(sections, targets, rng)
    parts = by_topic or _assign_sections(sections, targets, rng)
    body = json.dumps({name: [s.model_dump() for s in part] for name, part in parts.items()}, sort_keys=True)
    return TextSplits.model_validate(
        {
            **{name: tuple(part) for name, part in parts.items()},
            "by_topic": by_topic is not None,
            "digest": hashlib.sha256(body.encode()).hexdigest(),
        }
    )


def _targets(settings: TextSettings, available: int) -> dict[PartName, int]:
    """Sections wanted of each part. Raises TextError where the text is too short."""
    asked: dict[PartName, int] = {
        "gate": settings.gate_sections,
        "calibration": settings.calibration_sections,
        "search": settings.search_sections,
    }
    spare = available - sum(asked.values())
    if spare < 3:
        raise TextError(
            f"quality.text: {settings.source} has {available} sections of at most "
            f"{settings.section_characters} "
            f"characters; gate_sections ({settings.gate_sections}), calibration_sections and search_sections "
            f"take {sum(asked.values())} and 3 more are needed; give more text, or lower one of them"
        )
    gate, search = max(1, int(spare * TASKS_GATE_SHARE)), max(1, int(spare * TASKS_SEARCH_SHARE))
    return {**asked, "tasks_gate": gate, "tasks_search": search, "train": spare - gate - search}


def _assign_topics(
    sections: dict[str, list[Section]], targets: dict[PartName, int], rng: random.Random
) -> Parts | None:
    """Whole topics to sides, largest first, each to the side that lacks most; None where that cannot work."""
    total = sum(map(len, sections.values()))
    if len(sections) < len(SIDES) or max(map(len, sections.values())) > LARGEST_TOPIC_SHARE * total:
        return None
    received: dict[tuple[PartName, ...], list[Section]] = {side: [] for side in SIDES}
    order = sorted(sections)
    rng.shuffle(order)
    for topic in sorted(order, key=lambda name: -len(sections[name])):
        lacking = {side: sum(targets[name] for name in side) - len(received[side]) for side in SIDES}
        fitting = [side for side in SIDES if lacking[side] >= len(sections[topic])]
        received[max(fitting or SIDES, key=lacking.__getitem__)].extend(sections[topic])
    parts: Parts = {}
    for side, pool in received.items():
        # A random choice, so that no single large topic fills the part that is judged on.
        first = len(pool) if side == ("train",) else targets[side[0]]
        if len(pool) < max(first, 1) + len(side) - 1:
            return None
        drawn = rng.sample(pool, len(pool))
        parts[side[0]] = _ordered(drawn[:first])
        if len(side) == 2:
            parts[side[1]] = _ordered(drawn[first:])
    return parts


def _assign_sections(
    sections: dict[str, list[Section]], targets: dict[PartName, int], rng: random.Random
) -> Parts:
    """Sections to parts at random: what remains to do where one topic is most of the text."""
    pool = [section for topic in sorted(sections) for section in sections[topic]]
    rng.shuffle(pool)
    parts: Parts = {}
    for name, count in targets.items():
        parts[name], pool = _ordered(pool[:count]), pool[count:]
    return parts


def _ordered(sections: Iterable[Section]) -> list[Section]:
    return sorted(sections, key=lambda section: section.id)
