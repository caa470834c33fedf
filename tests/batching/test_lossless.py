"""The rule of what is lossless: identical, a numerical tie, a difference."""

from collections.abc import Sequence

import numpy as np
import pytest
from fake_engine import FakeEngine

from configs.engine import EngineSettings
from tasks.batching.lossless import Losslessness, check_lossless, first_difference
from tasks.engines.protocol import Generation, GenerationRequest

SETTINGS = EngineSettings(engine="openvino")
REQUESTS = [GenerationRequest((token, token + 1), 8, ignore_eos=True) for token in range(10)]


class Scorers:
    """Plain scorers whose logits change with the pieces: 0.01 nats of noise where several tokens are fed at once."""

    def __init__(self) -> None:
        self.opened: list[int] = []

    def __call__(self, pieces: int) -> FakeEngine:
        self.opened.append(pieces)
        return self.engine(pieces)

    def engine(self, pieces: int = 1) -> FakeEngine:
        return FakeEngine(SETTINGS, noise=0.0 if pieces == 1 else 0.01)


class TiedScorers(Scorers):
    """After token 5, tokens 20 and 21 lead all others and lie `apart` nats from each other."""

    def __init__(self, apart: float) -> None:
        super().__init__()
        self.apart = apart

    def engine(self, pieces: int = 1) -> FakeEngine:
        engine = super().engine(pieces)
        engine._logits_VV[5] = engine._logits_VV[5].clip(max=3)
        engine._logits_VV[5, [20, 21]] = 10.0, 10.0 - self.apart
        return engine


def changed(made: Sequence[Generation], request: int, position: int, token: int) -> list[Generation]:
    """The same outputs with one token replaced, and what follows it nonsense: it must not be compared."""
    kept = made[request].tokens[:position]
    tokens = (*kept, token, *((63,) * (len(made[request].tokens) - position - 1)))
    return [*made[:request], Generation(tokens, made[request].token_times_s), *made[request + 1 :]]


def check(scorers: Scorers, plain, other, max_tie_nats: float = 0.25) -> Losslessness:
    return check_lossless(REQUESTS, plain, other, scorers, block=4, max_tie_nats=max_tie_nats)


def test_first_difference():
    made = Generation((1, 2, 3), (0.1, 0.2, 0.3))
    assert first_difference(made, made) is None
    assert first_difference(made, Generation((1, 9, 3), made.token_times_s)) == 1
    assert first_difference(made, Generation((1, 2), (0.1, 0.2))) == 2


def test_identical_outputs_need_no_scoring():
    scorers = Scorers()
    made = scorers.engine().generate(REQUESTS)
    found = check(scorers, made, made)
    assert found == Losslessness(identical=10, tied=0, different=0)
    assert found.lossless
    assert scorers.opened == []


@pytest.mark.parametrize(("apart", "tied"), [(1e-4, 1), (1.5, 0)])
def test_a_tie_lies_within_what_feeding_changes_and_a_difference_does_not(apart, tied):
    scorers = TiedScorers(apart)
    requests = [GenerationRequest((1, 5), 8, ignore_eos=True), *REQUESTS[1:]]
    plain = scorers.engine().generate(requests)
    assert plain[0].tokens[0] == 20
    other = changed(plain, 0, 0, 21)
    found = check_lossless(requests, plain, other, scorers, block=4, max_tie_nats=0.25)
    assert (found.identical, found.tied, found.different) == (9, tied, 1 - tied)
    assert found.largest_gap_nats == pytest.approx(apart, abs=1e-5)
    assert 0.001 < found.tolerance_nats < 0.15  # a few standard deviations of the noise, over positions
    assert found.positions == 8 * 8  # eight requests of eight tokens, the one that differs among them
    assert scorers.opened == [1, 5]  # as decoded, and as a pass over block + 1 tokens


def test_an_output_that_ends_early_is_different():
    scorers = Scorers()
    plain = scorers.engine().generate(REQUESTS)
    short = [Generation(plain[0].tokens[:5], plain[0].token_times_s[:5]), *plain[1:]]
    found = check(scorers, plain, short)
    assert (found.identical, found.tied, found.different) == (9, 0, 1)
    assert not found.lossless


def test_a_noisy_engine_does_not_make_everything_a_tie():
    """Noise of half a nat would excuse any token; the stated limit does not."""

    class Noisy(TiedScorers):
        def engine(self, pieces: int = 1) -> FakeEngine:
            engine = super().engine(pieces)
            if pieces > 1:
                engine._logits_VV += np.random.default_rng(9).normal(0, 0.5, engine._logits_VV.shape)
            return engine

    scorers = Noisy(apart=0.4)
    requests = [GenerationRequest((1, 5), 8, ignore_eos=True), *REQUESTS[1:]]
    plain = scorers.engine().generate(requests)
    found = check_lossless(requests, plain, changed(plain, 0, 0, 21), scorers, block=4, max_tie_nats=0.25)
    assert found.tolerance_nats == 0.25
    assert found.different == 1
