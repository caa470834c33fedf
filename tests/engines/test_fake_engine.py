import numpy as np
import pytest
from fake_engine import FakeEngine

from configs.engine import EngineSettings, SchedulerSettings
from tasks.engines.protocol import Engine, EngineError, GenerationRequest, ScoreRequest

SETTINGS = EngineSettings(engine="openvino", scheduler=SchedulerSettings(max_num_seqs=2))


def _mean_kl(noise: float) -> float:
    requests = [ScoreRequest((i,), (0,)) for i in range(64)]
    pairs = zip(
        FakeEngine(SETTINGS).score(requests, with_logits=True),
        FakeEngine(SETTINGS, noise=noise).score(requests, with_logits=True),
        strict=True,
    )
    total = 0.0
    for a, b in pairs:
        assert a.logits is not None
        assert b.logits is not None
        p, q = (np.exp(x[0] - x[0].max()) for x in (a.logits, b.logits))
        p, q = p / p.sum(), q / q.sum()
        total += float((p * np.log(p / q)).sum())
    return total / len(requests)


def test_more_noise_is_worse() -> None:
    assert _mean_kl(0.0) == 0.0
    assert 0 < _mean_kl(0.05) < _mean_kl(0.3)


def test_scores_normalise_and_times_follow_the_batch() -> None:
    engine: Engine = FakeEngine(SETTINGS, tokens_per_s=10)
    every = list(engine.score([ScoreRequest((3,), (t,)) for t in range(64)]))
    assert sum(np.exp(s.logprobs[0]) for s in every) == pytest.approx(1, abs=1e-5)
    assert sum(s.is_argmax[0] for s in every) == 1
    made = engine.generate([GenerationRequest((3,), 4, ignore_eos=True)] * 3)
    assert [g.token_times_s[0] for g in made] == pytest.approx([0.1, 0.1, 0.5])
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.generate([])
