"""Streamed or all at once, an engine says the same; and what is cancelled is gone."""

import json
from pathlib import Path

import pytest
from tiny_llama import tiny_llama

from configs.engine import EngineSettings, SchedulerSettings
from configs.weights import WeightSettings
from tasks.compression.onnx import build_onnx
from tasks.engines.open import open_engine
from tasks.engines.protocol import EngineUnavailable, GenerationRequest
from tasks.engines.streaming import Sampling, StreamingEngine, StreamRequest
from tasks.engines.streaming_open import open_streaming
from tasks.store.artifact import Artifact, Manifest

LENGTHS = ((5, 9), (40, 4), (1, 12), (17, 1), (3, 6), (33, 7))
REQUESTS = [
    GenerationRequest(tuple(range(20 + i, 20 + i + prompt)), new, ignore_eos=True)
    for i, (prompt, new) in enumerate(LENGTHS)
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def artifacts(checkpoint: Artifact, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    out = tmp_path_factory.mktemp("onnx")
    build_onnx(checkpoint, WeightSettings(), (), out)
    onnx = Artifact(digest="1" * 64, folder=out, manifest=Manifest(kind="onnxruntime", files=()))
    return {"transformers": checkpoint, "onnxruntime": onnx}


def settings(engine: str, **scheduler: object) -> EngineSettings:
    given = {"max_num_seqs": 3, "max_num_batched_tokens": 16, **scheduler}
    return EngineSettings(engine=engine, threads=1, scheduler=SchedulerSettings(**given))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def expected(artifacts: dict[str, Artifact]) -> dict[str, list[list[int]]]:
    """What each engine says when it is asked one request after another."""
    said = {}
    for name, artifact in artifacts.items():
        with open_engine(artifact, settings(name, max_num_seqs=1)) as engine:
            said[name] = [list(each.tokens) for each in engine.generate(REQUESTS)]
    return said


def finished(engine: StreamingEngine, steps: int = 500) -> tuple[dict[int, list[int]], dict[int, str]]:
    tokens: dict[int, list[int]] = {}
    ends: dict[int, str] = {}
    while engine.busy:
        assert steps, "it never comes to an end"
        steps -= 1
        for progress in engine.step():
            assert progress.request_id not in ends
            tokens.setdefault(progress.request_id, []).extend(progress.tokens)
            if progress.end:
                ends[progress.request_id] = progress.end
    return tokens, ends


@pytest.mark.parametrize(
    ("name", "split"), [("transformers", True), ("onnxruntime", True), ("onnxruntime", False)]
)
def test_streamed_is_what_generate_says(
    artifacts: dict[str, Artifact], expected: dict[str, list[list[int]]], name: str, split: bool
) -> None:
    engine = open_streaming(artifacts[name], settings(name, split_prefill=split), sequence_tokens=64)
    assert engine.sequence_tokens == 64
    for key, request in enumerate(REQUESTS[:2]):
        engine.submit(key, StreamRequest(request))
    early = [progress for _ in range(3) for progress in engine.step()]
    for key, request in enumerate(REQUESTS[2:], start=2):  # while the first ones run
        engine.submit(key, StreamRequest(request))
    tokens, ends = finished(engine)
    for progress in reversed(early):
        tokens.setdefault(progress.request_id, [])[:0] = progress.tokens
    assert [tokens[key] for key in range(len(REQUESTS))] == expected[name]
    assert set(ends.values()) | {each.end for each in early if each.end} == {"length"}
    engine.close()


@pytest.mark.parametrize("name", ["transformers", "onnxruntime"])
def test_the_token_that_ends_a_text_ends_it(
    artifacts: dict[str, Artifact], name: str, tmp_path: Path
) -> None:
    """The model's own third token is made its end token."""
    with open_engine(artifacts[name], settings(name)) as engine:
        tokens = engine.generate([GenerationRequest((20, 21, 22), 8, ignore_eos=True)])[0].tokens
    end = next(token for i, token in enumerate(tokens) if token not in tokens[:i] and i)
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in artifacts[name].folder.iterdir():
        if file.name == "genai_config.json":
            config = json.loads(file.read_text())
            config["model"]["eos_token_id"] = [end]
            (folder / file.name).write_text(json.dumps(config))
        elif file.name == "generation_config.json":
            (folder / file.name).write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": end}))
        else:
            (folder / file.name).hardlink_to(file)
    artifact = artifacts[name].model_copy(update={"folder": folder})
    engine = open_streaming(artifact, settings(name), sequence_tokens=64)
    engine.submit(0, StreamRequest(GenerationRequest((20, 21, 22), 8)))
    made, ends = finished(engine)
    assert made[0] == list(tokens[: tokens.index(end) + 1])
    assert ends == {0: "stop"}
    engine.close()


@pytest.mark.parametrize(
    ("name", "after"), [("transformers", 2), *(("onnxruntime", after) for after in (0, 1, 2, 3, 5))]
)
def test_what_is_cancelled_is_gone_and_the_others_do_not_notice(
    artifacts: dict[str, Artifact], expected: dict[str, list[list[int]]], name: str, after: int
) -> None:
    """Cancelled while it waits, while its prompt of three pieces is fed, and while it decodes."""
    engine = open_streaming(artifacts[name], settings(name), sequence_tokens=64)
    order = [1, 0, 2, 3, 4, 5]  # the long prompt first
    for key in order:
        engine.submit(key, StreamRequest(REQUESTS[key]))
    before = [progress for _ in range(after) for progress in engine.step()]
    gone = {1, 5} - {progress.request_id for progress in before if progress.end}
    for key in (1, 5):
        engine.cancel(key)
    tokens, _ = finished(engine)
    assert not gone & tokens.keys()
    for progress in reversed(before):
        tokens.setdefault(progress.request_id, [])[:0] = progress.tokens
    for key in set(order) - gone:
        assert tokens[key] == expected[name][key]
    engine.close()


def test_greedy_engines_refuse_to_draw(artifacts: dict[str, Artifact]) -> None:
    for name, artifact in artifacts.items():
        engine = open_streaming(artifact, settings(name), sequence_tokens=64)
        assert not engine.samples
        with pytest.raises(EngineUnavailable, match="temperature 0"):
            engine.submit(0, StreamRequest(REQUESTS[0], Sampling(temperature=0.5)))
        engine.close()


def test_a_small_cache_means_shorter_requests(artifacts: dict[str, Artifact]) -> None:
    """16 MiB hold 21,845 tokens of 768 bytes: the model's own 256 are the limit; and as many slots as fit."""
    engine = open_streaming(
        artifacts["onnxruntime"], settings("onnxruntime", cache_mib=16), sequence_tokens=10**6
    )
    assert engine.sequence_tokens == 256
    assert engine.slots == 3
    engine.close()
