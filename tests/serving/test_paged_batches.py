"""The peer of the serve benchmark that keeps transformers' own continuous batching says what transformers says."""

from pathlib import Path

from tiny_llama import tiny_llama

from configs.engine import EngineSettings, SchedulerSettings
from tasks.engines.protocol import GenerationRequest
from tasks.engines.streaming import StreamRequest
from tasks.engines.transformers_engine import TransformersEngine
from tests.benchmarks.paged_batches import PagedBatches

PROMPTS = ((5, 6, 7, 8), (40, 41), (100, 3, 77, 12, 9, 60, 61))


def test_every_request_gets_its_own_greedy_tokens(tmp_path: Path) -> None:
    checkpoint = tiny_llama(tmp_path / "m")
    settings = EngineSettings(engine="transformers", scheduler=SchedulerSettings(max_num_seqs=4))
    requests = [GenerationRequest(p, 6 + i, ignore_eos=True) for i, p in enumerate(PROMPTS)]
    with TransformersEngine.open(checkpoint, settings) as engine:
        expected = {i: made.tokens for i, made in enumerate(engine.generate(requests))}
    batches = PagedBatches(TransformersEngine.open(checkpoint, settings))
    got: dict[int, tuple[int, ...]] = dict.fromkeys(expected, ())
    ends = []
    try:
        for i, request in enumerate(requests):
            batches.submit(i, StreamRequest(request))
        while batches.busy:
            for each in batches.step():
                got[each.request_id] += each.tokens
                ends += [each.end] if each.end else []
    finally:
        batches.close()
    assert got == expected
    assert ends == ["length"] * 3
