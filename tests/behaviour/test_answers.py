"""What an engine returns, as an answer."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from fake_engine import FakeEngine
from tiny_llama import EOS, tiny_llama

from configs.behaviour import BehaviourSettings
from configs.engine import EngineSettings
from tasks.behaviour.answers import answers_of
from tasks.behaviour.prompts import embedded_prompts
from tasks.engines.protocol import Generation, GenerationRequest
from tasks.quality.tokenizer import TextTokenizer

LIMIT = 6


class Reciting(FakeEngine):
    """Returns given tokens, whatever it is asked."""

    def __init__(self, *completions: tuple[int, ...]) -> None:
        super().__init__(EngineSettings(engine="openvino"), vocab_size=300)
        self.completions = completions

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        assert {request.max_new_tokens for request in requests} == {LIMIT}
        return [Generation(tokens, (0.0,) * len(tokens)) for tokens in self.completions]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny")).folder


def test_the_ending_token_is_no_part_of_an_answer_and_tells_whether_it_was_cut_off(tiny: Path) -> None:
    words = tuple(TextTokenizer(tiny).encode("the keys are on the table", add_special_tokens=False))
    full = (words * LIMIT)[:LIMIT]
    engine = Reciting((*words[:2], EOS), full, (*full[:-1], EOS), (EOS,))
    made = answers_of(
        engine,
        tiny,
        BehaviourSettings(max_new_tokens=LIMIT),
        model="reciting",
        prompts=embedded_prompts()[:4],
    )
    short, cut, just_done, nothing = made.rows

    assert (short.tokens, short.hit_limit) == (words[:2], False)
    assert (cut.tokens, cut.hit_limit) == (full, True)
    assert (just_done.tokens, just_done.hit_limit) == (full[:-1], False)
    assert (nothing.tokens, nothing.text, nothing.hit_limit) == ((), "", False)
    assert short.text == TextTokenizer(tiny).decode(words[:2]).strip()
    assert (made.model, made.max_new_tokens, made.chat_template) == ("reciting", LIMIT, False)
