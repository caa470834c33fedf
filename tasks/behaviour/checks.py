"""The rule-based checks of one answer."""

from configs.behaviour import BehaviourSettings
from tasks.behaviour.answers import Answer
from tasks.behaviour.expected_format import keeps_format
from tasks.behaviour.prompts import Prompt
from tasks.behaviour.refusal import is_refusal
from tasks.behaviour.repetition import ends_in_loop, repeated_share
from tasks.behaviour.writing import same_writing, writing_of
from tasks.store.record import Record


class AnswerChecks(Record):
    """What the rules say of one answer.

    Attributes:
        length_tokens: its length, the ending token not counted.
        hit_limit: it was cut off at the length limit.
        empty: nothing but white space.
        repeated_share: share of n-grams that stood in it before.
        repetitive: that share is above the limit, or the answer ends in a loop.
        refusal: it opens with a refusal.
        writing: its dominant writing system; None without letters.
        off_language: it is written otherwise than its prompt.
        format_lost: it breaks the format asked for; None where none is.
    """

    length_tokens: int
    hit_limit: bool
    empty: bool
    repeated_share: float
    repetitive: bool
    refusal: bool
    writing: str | None
    off_language: bool
    format_lost: bool | None

    def differences(self, other: "AnswerChecks") -> int:
        """Number of yes-or-no checks on which two answers differ."""
        names = ("hit_limit", "empty", "repetitive", "refusal", "off_language", "format_lost")
        return sum(getattr(self, name) != getattr(other, name) for name in names)


def check_answer(prompt: Prompt, answer: Answer, settings: BehaviourSettings) -> AnswerChecks:
    """Apply every rule to one answer."""
    share = repeated_share(answer.tokens, settings.repetition_ngram)
    return AnswerChecks(
        length_tokens=len(answer.tokens),
        hit_limit=answer.hit_limit,
        empty=not answer.text.strip(),
        repeated_share=share,
        repetitive=share > settings.repeated_share or ends_in_loop(answer.tokens),
        refusal=is_refusal(answer.text, settings.refusal_patterns),
        writing=writing_of(answer.text),
        off_language=not same_writing(prompt.text, answer.text),
        format_lost=None if prompt.expects is None else not keeps_format(answer.text, prompt.expects),
    )
