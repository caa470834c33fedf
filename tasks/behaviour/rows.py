"""One row a prompt, both answers and what the rules say of each; and the rows as paired values a check."""

import math
from difflib import SequenceMatcher

from configs.behaviour import BehaviourSettings
from tasks.behaviour.answers import Answer
from tasks.behaviour.checks import AnswerChecks, check_answer
from tasks.behaviour.drift import CheckName, Harm, PairedValues
from tasks.behaviour.error import BehaviourError
from tasks.behaviour.prompts import Prompt
from tasks.behaviour.writing import same_writing
from tasks.store.record import Record


class PromptRow(Record):
    """One prompt, both answers, and what the rules say of each.

    Attributes:
        prompt_id: id in the set.
        cluster: template of the prompt.
        prompt: what the user asked last.
        source_text: the source's answer.
        candidate_text: the candidate's.
        source: rules on the source's answer.
        candidate: rules on the candidate's.
        language_changed: the candidate writes otherwise than the source.
        change: checks that changed, plus the share of tokens that did (0 for the same answer).
    """

    prompt_id: str
    cluster: str
    prompt: str
    source_text: str
    candidate_text: str
    source: AnswerChecks
    candidate: AnswerChecks
    language_changed: bool
    change: float


def row_of(prompt: Prompt, before: Answer, after: Answer, settings: BehaviourSettings) -> PromptRow:
    """Apply the rules to both answers and measure how much changed."""
    source, candidate = (check_answer(prompt, answer, settings) for answer in (before, after))
    # autojunk would ignore frequent tokens of long answers, and with them a loop.
    same = SequenceMatcher(None, before.tokens, after.tokens, autojunk=False).ratio()
    language = not same_writing(before.text, after.text)
    return PromptRow(
        prompt_id=prompt.id,
        cluster=prompt.cluster,
        prompt=prompt.text,
        source_text=before.text,
        candidate_text=after.text,
        source=source,
        candidate=candidate,
        language_changed=language,
        change=source.differences(candidate) + language + 1 - same,
    )


def paired_values(rows: tuple[PromptRow, ...], settings: BehaviourSettings) -> list[PairedValues]:
    """The rows as values a check, with the configured margins.

    Raises:
        BehaviourError: a margin is set for a format and no prompt asks for one.
    """
    margins = settings.margins
    growth = margins.max_length_drift_fraction
    length_margin = None if growth is None else math.log1p(growth)
    formatted = tuple(row for row in rows if row.source.format_lost is not None)
    if margins.max_format_loss is not None and not formatted:
        raise BehaviourError(
            "behaviour.margins.max_format_loss is set and no prompt has 'expects'; "
            "say which formats are asked for, or leave the margin out"
        )
    values = [
        _of_field(rows, "refusal", "refusal", margins.max_refusal_drift, "either"),
        _of_field(rows, "repetition", "repetitive", margins.max_repetition_drift),
        _of_field(rows, "length", "length_tokens", length_margin, "either"),
        _of_field(rows, "hit_limit", "hit_limit"),
        _of_field(rows, "empty", "empty"),
        _of_field(rows, "off_language", "off_language"),
        _of_change(rows, "language_changed", [row.language_changed for row in rows]),
        _of_change(rows, "answer_changed", [row.source_text != row.candidate_text for row in rows]),
    ]
    if formatted:
        values.insert(3, _of_field(formatted, "format_lost", "format_lost", margins.max_format_loss))
    return values


def _of_field(
    rows: tuple[PromptRow, ...],
    check: CheckName,
    field: str,
    margin: float | None = None,
    harm: Harm = "growth",
) -> PairedValues:
    return PairedValues(
        check=check,
        source=tuple(float(getattr(row.source, field)) for row in rows),
        candidate=tuple(float(getattr(row.candidate, field)) for row in rows),
        clusters=tuple(row.cluster for row in rows),
        margin=margin,
        harm=harm,
    )


def _of_change(rows: tuple[PromptRow, ...], check: CheckName, changed: list[bool]) -> PairedValues:
    """The candidate against the source itself, which by definition never changes."""
    return PairedValues(
        check=check,
        source=(0.0,) * len(rows),
        candidate=tuple(map(float, changed)),
        clusters=tuple(row.cluster for row in rows),
    )
