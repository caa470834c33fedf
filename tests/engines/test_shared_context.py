"""Choices of one context: fed once, scored as if each had been alone."""

import itertools

import numpy as np
import pytest
from tiny_llama import tiny_llama

from configs.engine import EngineSettings
from configs.weights import WeightSettings
from tasks.compression.build import build_artifact
from tasks.engines.open import open_engine
from tasks.engines.protocol import Engine, ScoreRequest
from tasks.store.artifact import Artifact
from tasks.store.store import Store

CONTEXT_TOKENS = (1, 7, 31, 32, 33, 64, 90)  # around the cache's blocks of 32
TARGET_TOKENS = (1, 2, 1, 9, 40)
ALIKE_TOKENS = (1, 3, 33)  # with which all choices of an item begin


def requests() -> list[ScoreRequest]:
    rng = np.random.default_rng(1)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(map(int, rng.integers(2, 280, count)))

    contexts = [tokens(count) for count in CONTEXT_TOKENS]
    asked = [ScoreRequest(context, tokens(count)) for context in contexts for count in TARGET_TOKENS]
    for context_tokens, stem_tokens in itertools.product(CONTEXT_TOKENS, ALIKE_TOKENS):
        context, stem = tokens(context_tokens), tokens(stem_tokens)
        asked += [ScoreRequest(context, stem + tokens(count)) for count in (2, 1, 9)]
    context, stem = tokens(20), tokens(5)  # one choice is the beginning of another, and one comes twice
    return asked + [ScoreRequest(context, stem + more) for more in ((), tokens(3), (), tokens(1))]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(params=["openvino", "onnxruntime"])
def engine(request: pytest.FixtureRequest, checkpoint: Artifact, tmp_path):
    kind = request.param
    artifact = build_artifact(Store(tmp_path), checkpoint, kind, WeightSettings(), ())
    with open_engine(artifact, EngineSettings(engine=kind), chunk_tokens=16, batch_tokens=256) as opened:
        yield opened


def test_shared_scores_are_those_of_each_alone(engine: Engine) -> None:
    asked = requests()
    together = list(engine.score(asked))
    alone = [next(iter(engine.score([request]))) for request in asked]
    for request, first, second in zip(asked, together, alone, strict=True):
        assert len(first.logprobs) == len(request.targets)
        np.testing.assert_allclose(first.logprobs, second.logprobs, atol=2e-5)
        assert (first.is_argmax == second.is_argmax).all()


def test_logits_come_with_shared_scores(engine: Engine) -> None:
    asked = requests()
    for request, scored in zip(asked, engine.score(asked, with_logits=True), strict=True):
        logits = scored.logits
        assert logits is not None
        assert logits.shape == (len(request.targets), engine.vocab_size)
        rows = logits.astype(np.float64)
        logprobs = rows[np.arange(len(rows)), list(request.targets)] - np.log(np.exp(rows).sum(1))
        np.testing.assert_allclose(scored.logprobs, logprobs, atol=1e-4)
        assert (scored.is_argmax == (rows.argmax(1) == np.array(request.targets))).all()


@pytest.mark.parametrize("alike", [0, 10])
def test_what_choices_have_in_common_is_fed_once(
    engine: Engine, alike: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(2)
    context, stem = (tuple(map(int, rng.integers(2, 280, count))) for count in (80, alike))
    choices = [ScoreRequest(context, (*stem, first, 5, 6)) for first in range(10, 14)]
    fed = 0
    if engine.settings.engine == "openvino":
        next(iter(engine.score(choices[:1])))
        scorer = engine._scorer  # type: ignore[attr-defined]
        infer = scorer._request.infer

        class Counting:
            def infer(self, feed, **options):
                nonlocal fed
                fed += len(feed["input_ids"])
                return infer(feed, **options)

            def __getattr__(self, name):
                return getattr(original, name)

        original = scorer._request
        scorer._request = Counting()
    else:
        graph = engine._graph  # type: ignore[attr-defined]
        feed_graph = graph.feed

        def counting(sequences, *rest, **options):
            nonlocal fed
            fed += sum(map(len, sequences))
            return feed_graph(sequences, *rest, **options)

        monkeypatch.setattr(graph, "feed", counting)
    list(engine.score(choices))
    shared, apart = (80 + alike, 2) if engine.settings.engine == "openvino" else (80, alike + 3)
    assert fed == shared + 4 * apart
