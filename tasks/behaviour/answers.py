"""What one model answers: greedy, through the engine that would be served."""

from pathlib import Path

from configs.behaviour import BehaviourSettings
from tasks.behaviour.chat import ChatTokenizer
from tasks.behaviour.error import BehaviourError
from tasks.behaviour.prompts import Prompt, prompts_of
from tasks.engines.protocol import Engine, Generation, GenerationRequest
from tasks.store.digest import digest_of
from tasks.store.record import Record


class Answer(Record):
    """One answer.

    Attributes:
        text: as the tokenizer decodes it, special tokens left out.
        tokens: token ids, without the special token that ended it.
        hit_limit: it was cut off at `max_new_tokens`.
    """

    text: str
    tokens: tuple[int, ...]
    hit_limit: bool


class Answers(Record):
    """All answers of one model, with the prompts they answer.

    Attributes:
        model: its name, for people.
        chat_template: whether the tokenizer's template was applied.
        max_new_tokens: longest answer allowed.
        prompts: what was asked.
        rows: one answer a prompt, in the same order.
    """

    model: str
    chat_template: bool
    max_new_tokens: int
    prompts: tuple[Prompt, ...]
    rows: tuple[Answer, ...]

    @property
    def prompts_digest(self) -> str:
        """Sha256 of the prompts: what a comparison and a judge's calibration belong to."""
        return digest_of([prompt.model_dump(mode="json") for prompt in self.prompts])


def answers_of(
    engine: Engine,
    tokenizer_folder: Path,
    settings: BehaviourSettings,
    *,
    model: str,
    prompts: tuple[Prompt, ...] | None = None,
) -> Answers:
    """Ask an open engine every prompt.

    Args:
        engine: open; stays open.
        tokenizer_folder: folder of the model's tokenizer.json, and of its chat template where it has one.
        settings: which prompts, and how long an answer may be.
        model: name of the model, for people.
        prompts: already read ones; None reads `settings.prompts`.

    Raises:
        BehaviourError: the prompts cannot be used with this tokenizer.
        EngineError: the engine failed.
    """
    asked = prompts if prompts is not None else prompts_of(settings)
    tokenizer = ChatTokenizer(tokenizer_folder)
    requests = [GenerationRequest(tokenizer.encode(p.messages), settings.max_new_tokens) for p in asked]
    made = engine.generate(requests)
    return Answers(
        model=model,
        chat_template=tokenizer.has_template,
        max_new_tokens=settings.max_new_tokens,
        prompts=asked,
        rows=tuple(_answer(generation, tokenizer, settings.max_new_tokens) for generation in made),
    )


def check_comparable(source: Answers, candidate: Answers, prompts: tuple[Prompt, ...] | None = None) -> None:
    """Two models' answers must be to the same prompts, asked in the same way.

    Args:
        source: answers of one model.
        candidate: answers of the other.
        prompts: what both should have answered; None where that is not known.

    Raises:
        BehaviourError: they are not.
    """
    if source.prompts != candidate.prompts:
        raise BehaviourError(
            f"{source.model} and {candidate.model} answered other prompts; let both answer the same ones"
        )
    if prompts is not None and prompts != source.prompts:
        raise BehaviourError(
            f"{source.model} and {candidate.model} did not answer the prompts given; answer those first"
        )
    for answers in (source, candidate):
        if len(answers.rows) != len(answers.prompts):
            raise BehaviourError(
                f"{answers.model} has {len(answers.rows)} answers to {len(answers.prompts)} prompts; ask it again"
            )
    if source.max_new_tokens != candidate.max_new_tokens or source.chat_template != candidate.chat_template:
        raise BehaviourError(
            f"{source.model} and {candidate.model} answered with another max_new_tokens "
            f"({source.max_new_tokens}, {candidate.max_new_tokens}) or chat template; ask both in the same way"
        )


def _answer(generation: Generation, tokenizer: ChatTokenizer, limit: int) -> Answer:
    tokens = generation.tokens
    ended = bool(tokens) and tokenizer.ends(tokens[-1])
    kept = tokens[:-1] if ended else tokens
    return Answer(
        text=tokenizer.decode(kept).strip(), tokens=kept, hit_limit=len(tokens) >= limit and not ended
    )
