"""A judge on an engine of this machine."""

from collections.abc import Sequence
from pathlib import Path

from configs.behaviour import LocalJudge
from tasks.behaviour.chat import ChatTokenizer
from tasks.behaviour.error import BehaviourError
from tasks.behaviour.prompts import Message
from tasks.engines.protocol import Engine, EngineError, GenerationRequest
from tasks.judging.error import JudgeError
from tasks.judging.family import families_of, families_of_folder
from tasks.judging.judge import Comparison, Preference, parse_preference, question


class EngineJudge:
    """Asks an open engine greedily; the engine stays open, and the caller's."""

    def __init__(self, engine: Engine, folder: Path, settings: LocalJudge, *, name: str) -> None:
        """Read tokenizer and family.

        Args:
            engine: open.
            folder: tokenizer, chat template and config.json of the judge.
            settings: how long a reply may be, and the family where the name does not say it.
            name: the judge's name, as in `model.name`.
        """
        self.name = name
        self.families = families_of_folder(folder, name) | families_of(settings.family or "", declared=True)
        self._engine = engine
        self._tokenizer = ChatTokenizer(folder)
        self._max_new_tokens = settings.max_new_tokens

    def compare(self, comparisons: Sequence[Comparison]) -> list[Preference]:
        """See `Judge.compare`."""
        try:
            requests = [
                GenerationRequest(
                    self._tokenizer.encode((Message(role="user", content=question(each)),)),
                    self._max_new_tokens,
                )
                for each in comparisons
            ]
            made = self._engine.generate(requests)
        except (EngineError, BehaviourError) as error:
            raise JudgeError(f"the judge {self.name} failed: {error}") from error
        return [parse_preference(self._tokenizer.decode(generation.tokens)) for generation in made]
