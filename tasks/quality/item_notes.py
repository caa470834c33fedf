"""Items in a form that people read: what was asked, what is right, what the model answered."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tasks.data.text import Section
from tasks.quality.item_rows import is_whole_text
from tasks.quality.samples import ItemNote, Sample

SHOWN_CHARACTERS = 320


def item_note(task: str, sample: Mapping[str, Any], item_hash: str, question: str) -> ItemNote:
    """The note of one item that lm-eval asked.

    Args:
        task: name.
        sample: as lm-eval logged it.
        item_hash: of the item's samples.
        question: the item's own text, without the examples before it; empty: the whole context, from its end.
    """
    prompt, target, answer, margin = _read(sample)
    return ItemNote(
        task=task,
        item=str(sample["doc_id"]),
        item_hash=item_hash,
        prompt=shortened(question or prompt),
        target=shortened(target),
        answer=shortened(answer),
        margin_nats=margin,
    )


def section_notes(rows: Iterable[Sample], sections: Iterable[Section]) -> tuple[ItemNote, ...]:
    """One note a scored section of text; `rows` are its samples."""
    texts = {section.id: shortened(section.text) for section in sections}
    notes = {
        row.item: ItemNote(task=row.task, item=row.item, item_hash=row.item_hash, prompt=texts[row.item])
        for row in rows
        if row.item in texts
    }
    return tuple(notes.values())


def shortened(text: str) -> str:
    """One line; of a long text the first half and the last."""
    line, half = " ".join(text.split()), SHOWN_CHARACTERS // 2
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[:half]} [...] {line[-half:]}"


def _read(sample: Mapping[str, Any]) -> tuple[str, str, str, float | None]:
    """(prompt, right answer, model's answer, margin) by the shape of the requests."""
    arguments, first = sample["arguments"], sample["resps"][0][0]
    if is_whole_text(sample):
        return arguments[0][0], "", "", None
    context, continuation = arguments[0]
    if isinstance(continuation, dict):  # generate_until: (context, settings)
        return context, str(sample["target"]), str(first), None
    if len(arguments) == 1:
        likelihood, greedy = first
        return context, continuation, continuation if greedy else "something else", float(likelihood)
    return _choice(sample, context)


def _choice(sample: Mapping[str, Any], context: str) -> tuple[str, str, str, float | None]:
    """A multiple choice; after the choices given the context lm-eval may ask for them without it."""
    asked = sample["arguments"]
    asked = asked[: len(asked) // 2] if "acc_mutual_info" in sample["metrics"] else asked
    choices = [continuation.strip() for _, continuation in asked]
    if len(set(choices)) == 1:  # the contexts differ and the continuation is common (winogrande)
        choices = [before.strip() for before, _ in asked]
    scores = [float(responses[0][0]) for responses in sample["resps"][: len(choices)]]
    if "acc" not in sample["metrics"] and "acc_norm" in sample["metrics"]:
        scores = [score / max(1, len(choice)) for score, choice in zip(scores, choices, strict=True)]
    answer = choices[scores.index(max(scores))]
    right = _index(sample["target"], choices)
    if right is None:
        return context, str(sample["target"]), answer, None
    margin = scores[right] - max(score for number, score in enumerate(scores) if number != right)
    return context, choices[right], answer, margin


def _index(target: Any, choices: Sequence[str]) -> int | None:
    """Which choice is right; None where several are, or the task does not say."""
    if isinstance(target, str) and target.strip() in choices:
        return choices.index(target.strip())
    return target if isinstance(target, int) and 0 <= target < len(choices) else None
