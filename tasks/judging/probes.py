"""Known-answer probes: the source's answer against a corrupted copy of itself, which must lose."""

import random
from collections.abc import Sequence
from typing import Literal, get_args

from tasks.behaviour.answers import Answers
from tasks.behaviour.repetition import ends_in_loop
from tasks.judging.judge import Comparison
from tasks.store.record import Record

Corruption = Literal["truncated", "shuffled", "other_prompt", "repeated"]
CORRUPTIONS: tuple[Corruption, ...] = get_args(Corruption)

MIN_PIECES = 6
"""Words (or pairs of characters, where there are no spaces) that an answer needs to be corrupted visibly."""

LOOPS = 8


class Probe(Record):
    """One probe.

    Attributes:
        prompt_id: the prompt that is asked.
        kind: how the answer was corrupted.
        prompt: the request.
        intact: the source's answer.
        corrupted: what must lose against it.
    """

    prompt_id: str
    kind: Corruption
    prompt: str
    intact: str
    corrupted: str

    def comparison(self, rubric: str) -> Comparison:
        """The question to the judge; the intact answer is the first."""
        return Comparison(rubric, self.prompt, self.intact, self.corrupted)


def probes_of(source: Answers, count: int, seed: int) -> tuple[Probe, ...]:
    """At most `count` probes, each of another template, the kinds in turn.

    Only answers are taken that can be corrupted: long enough, and not a loop already.
    """
    rng = random.Random(f"{seed}:probes")
    usable = [
        i
        for i, answer in enumerate(source.rows)
        if len(pieces(answer.text)) >= MIN_PIECES and not ends_in_loop(answer.tokens)
    ]
    probes: list[Probe] = []
    for i in drawn_from_clusters(source, usable, seed)[:count]:
        kind = CORRUPTIONS[len(probes) % len(CORRUPTIONS)]
        text, prompt = source.rows[i].text, source.prompts[i]
        others = [
            source.rows[j].text
            for j in usable
            if source.prompts[j].cluster != prompt.cluster and source.rows[j].text != text
        ]
        if kind == "other_prompt" and not others:
            kind = "shuffled"
        broken = rng.choice(others) if kind == "other_prompt" else corrupt(text, kind, rng)
        if broken != text:
            probe = Probe(
                prompt_id=prompt.id, kind=kind, prompt=prompt.transcript, intact=text, corrupted=broken
            )
            probes.append(probe)
    return tuple(probes)


def drawn_from_clusters(source: Answers, items: Sequence[int], seed: int) -> list[int]:
    """One item of each cluster, in random order: independent ones, whatever templates the prompts share."""
    order = list(items)
    random.Random(f"{seed}:clusters").shuffle(order)
    first: dict[str, int] = {}
    for i in order:
        first.setdefault(source.prompts[i].cluster, i)
    return list(first.values())


def corrupt(text: str, kind: Corruption, rng: random.Random) -> str:
    """A text broken off inside a word, with its words in random order, or stuck in a loop after its beginning.

    Raises:
        ValueError: `kind` needs another prompt's answer.
    """
    parts = pieces(text)
    space = " " if " " in text.strip() else ""
    third = max(2, len(parts) // 3)
    match kind:
        case "truncated":
            last = parts[third]
            return space.join([*parts[:third], last[: max(1, len(last) // 2)]])
        case "shuffled":
            mixed = list(parts)
            for _ in range(10):
                rng.shuffle(mixed)
                if mixed != parts:
                    break
            return space.join(mixed)
        case "repeated":
            loop = parts[third - 2 : third]
            return space.join([*parts[:third], *(loop * LOOPS)])
        case "other_prompt":
            raise ValueError("other_prompt: take the answer of another prompt")


def pieces(text: str) -> list[str]:
    """Words; pairs of characters where a text has next to no spaces, as Japanese has none."""
    words = text.split()
    if len(words) >= MIN_PIECES:
        return words
    dense = "".join(words)
    return [dense[i : i + 2] for i in range(0, len(dense), 2)] if len(dense) > 8 * len(words) else words
