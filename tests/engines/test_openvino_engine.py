"""The OpenVINO engine on the demo model: what is scored is what is served, and closing gives the memory
back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
import psutil
import pytest
import torch

from configs.engine import EngineSettings, SchedulerSettings
from configs.weights import WeightSettings
from tasks.compression.build import build_artifact
from tasks.engines.freed_memory import return_freed_memory
from tasks.engines.open import open_engine
from tasks.engines.openvino_engine import BLOCK_TOKENS, OpenVinoEngine
from tasks.engines.paged_scoring import PagedScorer
from tasks.engines.protocol import EngineError, EngineUnavailable, GenerationRequest, ScoreRequest
from tasks.engines.streaming import StreamRequest
from tasks.engines.streaming_openvino import StreamingOpenVino
from tasks.store.artifact import Artifact
from tasks.store.store import Store

pytestmark = pytest.mark.model

TEXT = (
    "A function definition is an executable statement. Its execution binds the function name in the "
    "current local "
    "namespace to a function object, a wrapper around the executable code for the function. This function "
    "object "
    "contains a reference to the current global namespace as the global namespace to be used when the "
    "function is "
    "called. The function definition does not execute the function body; this gets executed only when the "
    "function "
    "is called."
)


def _settings(compute: str = "f32", kv_cache: str = "f32", **scheduler: object) -> EngineSettings:
    return EngineSettings.model_validate(
        {
            "engine": "openvino",
            "compute": compute,
            "kv_cache": kv_cache,
            "scheduler": {"cache_mib": 64, "max_num_batched_tokens": 64, **scheduler},
        }
    )


@pytest.fixture(scope="module")
def exported(shared_store: Store, demo_checkpoint: Artifact) -> Artifact:
    return build_artifact(shared_store, demo_checkpoint, "openvino", WeightSettings(), ())


@pytest.fixture(scope="module")
def ids(exported: Artifact) -> tuple[int, ...]:
    from tokenizers import Tokenizer

    return tuple(Tokenizer.from_file(str(exported.folder / "tokenizer.json")).encode(TEXT).ids)


def _score(exported: Artifact, ids: tuple[int, ...], settings: EngineSettings, chunk: int = 64) -> np.ndarray:
    with OpenVinoEngine.open(exported, settings, chunk_tokens=chunk) as engine:
        return next(engine.score([ScoreRequest(ids[:1], ids[1:])])).logprobs


def _served_logprobs(exported: Artifact, ids: tuple[int, ...], settings: EngineSettings) -> np.ndarray:
    """What the serving pipeline itself says of the prompt's tokens."""
    with OpenVinoEngine.open(exported, settings) as engine:
        pipeline = engine._served()
        config = genai.GenerationConfig()
        config.max_new_tokens, config.echo, config.logprobs = 1, True, 1
        handle = pipeline.add_request(0, ov.Tensor(np.array([ids], np.int64)), config)
        while pipeline.has_non_finished_requests():
            pipeline.step()
        logprobs = handle.read_all()[
            0
        ].generated_log_probs  # a placeholder, the prompt after its first, the new token
        assert len(logprobs) == len(ids) + 1
        return np.array(logprobs[1 : len(ids)])


@pytest.mark.parametrize(("compute", "kv_cache"), [("f32", "f32"), ("bf16", "u8"), ("f32", "u4")])
def test_scores_are_those_of_the_serving_pipeline(
    exported: Artifact, ids: tuple[int, ...], compute: str, kv_cache: str
) -> None:
    """Chunks of 64 here, steps of 64 tokens there: the same kernels on the same blocks."""
    settings = _settings(compute, kv_cache)
    # One more target, so that both feed the same tokens: the scales of a quantized block cover all its tokens.
    ours = _score(exported, (*ids, 0), settings)[:-1]
    served = _served_logprobs(exported, ids, settings)
    difference = np.abs(ours - served)
    print(f"\n{compute}, cache {kv_cache}: largest difference {difference.max():.1e} nats")
    assert difference.max() < 1e-3


def _one_pass(exported: Artifact, ids: tuple[int, ...], kv_cache: str) -> np.ndarray:
    """Log-probabilities from one pass over the exported graph, as other evaluators feed it."""
    with OpenVinoEngine.open(exported, _settings("f32", kv_cache)) as engine:
        compiled = ov.Core().compile_model(exported.folder / "openvino_model.xml", "CPU", engine.properties)
    fed = np.array([ids[:-1]])
    feed = {"input_ids": fed, "attention_mask": np.ones_like(fed), "beam_idx": np.zeros(1, np.int32)}
    logits_TV = compiled(feed | {"position_ids": np.arange(fed.size)[None]})["logits"][0].astype(np.float64)
    targets = logits_TV[np.arange(fed.size), list(ids[1:])]
    return targets - np.log(np.exp(logits_TV).sum(1))


def test_a_coarse_cache_is_noticed_and_missed_by_one_pass(exported: Artifact, ids: tuple[int, ...]) -> None:
    exact, u8, u4 = (_score(exported, ids, _settings("f32", kind)) for kind in ("f32", "u8", "u4"))
    off_u8, off_u4 = np.abs(u8 - exact).mean(), np.abs(u4 - exact).mean()
    print(f"\nmean change of a log-probability: u8 {off_u8:.4f}, u4 {off_u4:.4f} nats")
    assert 1e-4 < off_u8 < off_u4
    assert off_u4 > 0.02
    missed = np.abs(_one_pass(exported, ids, "u4") - _one_pass(exported, ids, "f32")).mean()
    print(f"one pass over the exported graph: {missed:.1e} nats")
    assert missed < 1e-5


def test_scores_do_not_depend_on_batch_or_chunk(exported: Artifact, ids: tuple[int, ...]) -> None:
    requests = [ScoreRequest(ids[:n], ids[n : n + 5]) for n in (1, 40, 3, 64, 70, 12)]
    results = []
    for chunk, batch_tokens in ((0, 2048), (64, 16), (7, 2048)):
        with OpenVinoEngine.open(
            exported, _settings(), chunk_tokens=chunk, batch_tokens=batch_tokens
        ) as engine:
            results.append(list(engine.score(requests, with_logits=True)))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-3)
            assert a.logits is not None
            assert a.logits.shape == (5, 49152)


def test_more_logits_than_are_held_at_once_come_in_parts(
    exported: Artifact, ids: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten items of two choices of 30 tokens: 580 rows besides those of the contexts, of which 512 are held."""
    requests = [
        ScoreRequest(ids[start : start + 20], (first, *ids[start + 21 : start + 50]))
        for start in range(10)
        for first in (5, 6)
    ]
    rows: list[int] = []
    infer = PagedScorer._infer

    def counted(*arguments: Any) -> Any:
        found = infer(*arguments)
        rows.append(sum(len(each.logits) for each in found))
        return found

    monkeypatch.setattr(PagedScorer, "_infer", counted)
    with OpenVinoEngine.open(exported, _settings()) as engine:
        whole = list(engine.score(requests))
        assert len(rows) == 3  # contexts, and the choices in two parts
        assert 512 - 29 < max(rows) <= 512
        apart = [next(engine.score([request])) for request in requests]
    for a, b in zip(whole, apart, strict=True):
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-3)


def test_blocks_and_memory_are_what_is_compiled(exported: Artifact, ids: tuple[int, ...]) -> None:
    for kind in ("f32", "u8", "u4"):
        with OpenVinoEngine.open(exported, _settings("f32", kind)) as engine:
            list(engine.score([ScoreRequest(ids[:1], ids[1:2])]))
            scorer = engine._scorer
            assert scorer is not None
            assert scorer.block_bytes == engine.block_bytes
            assert engine.memory().kv_cache_bytes == engine.block_bytes  # one block for one token
            assert engine.cache_blocks * engine.block_bytes <= 64 * 2**20
            assert engine.memory().weights_bytes > 134_500_000 * 4 - 2**20
    assert BLOCK_TOKENS == 32


def test_threads_of_the_engine_are_not_those_of_its_process(exported: Artifact) -> None:
    settings = EngineSettings(engine="openvino", threads=2, scheduler=SchedulerSettings(threads=1))
    with open_engine(exported, settings) as engine:
        compiled = ov.Core().compile_model(exported.folder / "openvino_model.xml", "CPU", engine.properties)
        assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
        assert torch.get_num_threads() == 2


def test_generation_counts_times_and_eos(exported: Artifact, ids: tuple[int, ...]) -> None:
    requests = [
        GenerationRequest(ids[:n], max_new_tokens=m, ignore_eos=True) for n, m in ((5, 3), (70, 9), (16, 6))
    ]
    with OpenVinoEngine.open(exported, _settings()) as engine:
        together = engine.generate(requests)
        alone = [engine.generate([request])[0] for request in requests]
    for request, one, single in zip(requests, together, alone, strict=True):
        assert len(one.tokens) == len(one.token_times_s) == request.max_new_tokens
        assert list(one.token_times_s) == sorted(one.token_times_s)
        assert one.token_times_s[0] > 0
        assert one.tokens == single.tokens
    stop = json.loads((exported.folder / "generation_config.json").read_text())["eos_token_id"]
    assert isinstance(stop, int)


def test_a_request_that_does_not_fit_the_cache_is_an_error(exported: Artifact, ids: tuple[int, ...]) -> None:
    with (
        OpenVinoEngine.open(exported, _settings(cache_mib=16)) as engine,
        pytest.raises(EngineError, match="cache_mib"),
    ):
        engine.generate([GenerationRequest(ids * 8, max_new_tokens=4, ignore_eos=True)])


def test_wrong_kind_is_unavailable(demo_checkpoint: Artifact) -> None:
    with pytest.raises(EngineUnavailable, match="export it first"):
        OpenVinoEngine.open(demo_checkpoint, _settings())


def test_a_cache_type_that_the_plugin_refuses_is_unavailable(
    exported: Artifact, ids: tuple[int, ...]
) -> None:
    """What the schema does not know of is refused by the plugin: it compiles no attention in f32 over a bf16 cache."""
    with (
        OpenVinoEngine.open(exported, _settings().model_copy(update={"kv_cache": "bf16"})) as engine,
        pytest.raises(EngineUnavailable, match="choose another kv_cache or compute"),
    ):
        list(engine.score([ScoreRequest(ids[:1], ids[1:2])]))


def test_close_returns_memory(exported: Artifact, ids: tuple[int, ...]) -> None:
    process = psutil.Process()
    return_freed_memory()  # of the tests before
    engine = OpenVinoEngine.open(exported, _settings())
    before = process.memory_info().rss
    list(engine.score([ScoreRequest(ids[:1], ids[1:])]))
    engine.generate([GenerationRequest(ids[:4], max_new_tokens=2, ignore_eos=True)])
    held = process.memory_info().rss - before
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.generate([])
    left = process.memory_info().rss - before
    print(f"\nheld {held / 2**20:.0f} MiB, left after close {left / 2**20:.0f} MiB")
    assert held > 500 * 2**20
    assert left < held / 3


def test_an_end_token_that_was_to_be_ignored_ends_nothing(
    exported: Artifact, ids: tuple[int, ...], tmp_path: Path
) -> None:
    """Also where it is the last token asked for: that request ends by its length, not by that token."""
    request = GenerationRequest(ids[:20], 4, ignore_eos=True)
    with OpenVinoEngine.open(exported, _settings()) as engine:
        last = engine.generate([request])[0].tokens[-1]
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in exported.folder.iterdir():
        (folder / file.name).hardlink_to(file)
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").unlink()
    (folder / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": last}))
    artifact = exported.model_copy(update={"folder": folder})
    engine = StreamingOpenVino.open(artifact, _settings(), sequence_tokens=64)
    ends = {}
    for key, asked in enumerate((request, GenerationRequest(ids[:20], 4))):
        engine.submit(key, StreamRequest(asked))
    while engine.busy:
        ends |= {each.request_id: each.end for each in engine.step() if each.end}
    engine.close()
    assert ends == {0: "length", 1: "stop"}
