"""ONNX Runtime: the exported graph, rounded weights, scoring and continuous batching."""

import itertools
import json
import logging
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tiny_llama import EOS, TEXTS, tiny_llama

from configs.engine import EngineSettings, SchedulerSettings
from configs.weights import WeightSettings
from tasks.compression.error import CompressionError
from tasks.compression.onnx import build_onnx
from tasks.compression.onnx_matrix import round_matrix
from tasks.engines.onnxruntime_engine import OnnxRuntimeEngine
from tasks.engines.protocol import EngineError, EngineUnavailable, GenerationRequest, ScoreRequest
from tasks.engines.transformers_engine import TransformersEngine
from tasks.store.artifact import Artifact, Manifest

FORMATS = {
    "f32": WeightSettings(),
    "int8": WeightSettings(bits=8, group_size=32),
    "int4": WeightSettings(bits=4, group_size=16, symmetric=False),
}
TIE_NATS = 1e-3  # greedy tokens may differ only where the two candidates lie closer than this


def settings(**scheduler: object) -> EngineSettings:
    return EngineSettings(engine="onnxruntime", scheduler=SchedulerSettings(**scheduler))  # type: ignore[arg-type]


def built(checkpoint: Artifact, weights: WeightSettings, out: Path) -> Artifact:
    out.mkdir()
    build_onnx(checkpoint, weights, (), out)
    return Artifact(digest="1" * 64, folder=out, manifest=Manifest(kind="onnxruntime", files=()))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def artifacts(checkpoint: Artifact, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("onnx")
    return {name: built(checkpoint, weights, folder / name) for name, weights in FORMATS.items()}


def sequences(count: int, shortest: int, longest: int, seed: int = 0) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    return [tuple(map(int, rng.integers(2, 280, rng.integers(shortest, longest + 1)))) for _ in range(count)]


def score_requests() -> list[ScoreRequest]:
    """Lengths in no order, and contexts of one token and more."""
    return [
        ScoreRequest(ids[:cut], ids[cut:])
        for ids, cut in zip(sequences(9, 8, 40), itertools.cycle((1, 3, 7)), strict=False)
    ]


def generation_requests() -> list[GenerationRequest]:
    lengths = itertools.cycle((3, 9, 5, 12))
    return [
        GenerationRequest(ids, n, ignore_eos=True)
        for ids, n in zip(sequences(9, 2, 20), lengths, strict=False)
    ]


def test_scores_are_those_of_transformers(checkpoint: Artifact, artifacts: dict[str, Artifact]) -> None:
    with TransformersEngine.open(checkpoint, EngineSettings(engine="transformers")) as reference:
        expected = list(reference.score(score_requests(), with_logits=True))
    with OnnxRuntimeEngine.open(artifacts["f32"], settings(), batch_tokens=64) as engine:
        ours = list(engine.score(score_requests(), with_logits=True))
        without = list(engine.score(score_requests()))
    for a, b, c in zip(ours, expected, without, strict=True):
        np.testing.assert_allclose(a.logits, b.logits, atol=2e-4)
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=2e-4)
        np.testing.assert_allclose(a.logprobs, c.logprobs, atol=1e-5)
        assert (a.is_argmax == b.is_argmax).all()
        assert c.logits is None


@pytest.mark.parametrize("name", FORMATS)
def test_pieces_of_a_long_sequence_score_like_the_whole(artifacts: dict[str, Artifact], name: str) -> None:
    ids = sequences(1, 100, 100)[0]
    request = ScoreRequest(ids[:10], ids[10:])
    with OnnxRuntimeEngine.open(artifacts[name], settings()) as engine:
        (whole,) = engine.score([request], with_logits=True)
    for chunk in (7, 16, 0):
        with OnnxRuntimeEngine.open(
            artifacts[name], settings(), chunk_tokens=chunk, batch_tokens=64
        ) as engine:
            (pieces,) = engine.score([request], with_logits=True)
        assert pieces.logits is not None
        assert pieces.logits.shape == (90, engine.vocab_size)
        np.testing.assert_allclose(pieces.logprobs, whole.logprobs, atol=1e-3)


@pytest.mark.parametrize("name", FORMATS)
def test_greedy_tokens_are_what_scoring_calls_the_argmax(artifacts: dict[str, Artifact], name: str) -> None:
    requests = generation_requests()
    with OnnxRuntimeEngine.open(artifacts[name], settings()) as engine:
        made = engine.generate(requests)
        assert [len(g.tokens) for g in made] == [r.max_new_tokens for r in requests]
        scored = engine.score(
            [ScoreRequest(r.prompt, g.tokens) for r, g in zip(requests, made, strict=True)], with_logits=True
        )
        for generation, scores in zip(made, scores_of(scored), strict=True):
            top = scores.max(-1)
            chosen = scores[np.arange(len(top)), generation.tokens]
            assert (top - chosen < TIE_NATS).all()


def scores_of(scored: object) -> list[np.ndarray]:
    return [scores.logits for scores in scored]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "scheduler",
    [
        {"max_num_seqs": 3},
        {"max_num_seqs": 16, "max_num_batched_tokens": 16},
        {"max_num_seqs": 3, "max_num_batched_tokens": 16, "split_prefill": False},
    ],
    ids=["three-slots", "prompts-in-pieces", "whole-prompts-first"],
)
def test_batching_changes_no_request(
    artifacts: dict[str, Artifact], name: str, scheduler: dict[str, object]
) -> None:
    """Every request gets what it gets alone, up to a first difference that scoring calls a tie."""
    requests = generation_requests()
    with OnnxRuntimeEngine.open(artifacts[name], settings(**scheduler)) as engine:
        together = engine.generate(requests)
        for request, ours in zip(requests, together, strict=True):
            (alone,) = engine.generate([request])
            at = next(
                (i for i, (a, b) in enumerate(zip(ours.tokens, alone.tokens, strict=True)) if a != b), None
            )
            if at is not None:
                (scores,) = engine.score(
                    [ScoreRequest(request.prompt + alone.tokens[:at], (alone.tokens[at],))], with_logits=True
                )
                assert scores.logits is not None
                gap = scores.logits[0, ours.tokens[at]] - scores.logits[0, alone.tokens[at]]
                assert abs(gap) < TIE_NATS


def test_slots_are_shared_as_they_become_free(artifacts: dict[str, Artifact]) -> None:
    """With two slots the third request starts when the first ends, long before the second does."""
    prompts = sequences(3, 4, 4)
    requests = [GenerationRequest(p, n, ignore_eos=True) for p, n in zip(prompts, (2, 60, 2), strict=True)]
    with OnnxRuntimeEngine.open(artifacts["f32"], settings(max_num_seqs=2)) as engine:
        first, second, third = (g.token_times_s for g in engine.generate(requests))
    assert first[-1] < third[0] < third[-1] < second[-1]
    assert sorted(second) == list(second)
    assert second[0] > 0


def test_a_long_prompt_does_not_hold_up_the_others(artifacts: dict[str, Artifact]) -> None:
    """Its pieces alternate with steps of the request that runs, or come first, as `split_prefill` says."""
    short = GenerationRequest((5, 6), 40, ignore_eos=True)
    long = GenerationRequest((7,) * 100, 2, ignore_eos=True)
    made_before = []
    for split in (True, False):
        scheduler = settings(max_num_seqs=2, max_num_batched_tokens=16, split_prefill=split)
        with OnnxRuntimeEngine.open(artifacts["f32"], scheduler) as engine:
            running, late = engine.generate([short, long])
        made_before.append(sum(t < late.token_times_s[0] for t in running.token_times_s))
    assert made_before == [8, 2]  # 100 tokens are seven pieces, with six steps between them


def test_end_of_text_stops_only_who_asks(checkpoint: Artifact, artifacts: dict[str, Artifact]) -> None:
    """The artifact's stop tokens are the checkpoint's, and the stop token is part of the completion."""
    config = json.loads((artifacts["f32"].folder / "genai_config.json").read_text())
    assert config["model"]["eos_token_id"] == [EOS]
    with OnnxRuntimeEngine.open(artifacts["f32"], settings()) as engine:
        prompt = sequences(1, 6, 6)[0]
        (free,) = engine.generate([GenerationRequest(prompt, 12, ignore_eos=True)])
        engine._stop = frozenset({free.tokens[4]})
        at = free.tokens.index(free.tokens[4])
        stopped, ignoring = engine.generate(
            [GenerationRequest(prompt, 12), GenerationRequest(prompt, 12, ignore_eos=True)]
        )
    assert stopped.tokens == free.tokens[: at + 1]
    assert ignoring.tokens == free.tokens


@pytest.mark.parametrize(
    ("tied", "weights"),
    [
        pytest.param(True, WeightSettings(bits=8, group_size=32), id="int8"),
        pytest.param(False, WeightSettings(bits=8, group_size=16, symmetric=False), id="int8-asym-untied"),
        pytest.param(True, WeightSettings(bits=4, group_size=128), id="int4-group-wider-than-the-matrix"),
        pytest.param(
            True, WeightSettings(bits=4, group_size=32, symmetric=False, embedding_bits=4), id="all-int4-asym"
        ),
        pytest.param(False, WeightSettings(bits=4, group_size=16, embedding_bits=4), id="all-int4-untied"),
        pytest.param(True, WeightSettings(bits=4, group_size=16, embedding_bits=32), id="embedding-f32"),
    ],
)
def test_rounded_graph_is_the_model_of_rounded_weights(
    tmp_path: Path, tied: bool, weights: WeightSettings
) -> None:
    """Against transformers on dequantized matrices; activations in int8 leave a difference."""
    import torch
    from transformers import LlamaForCausalLM

    checkpoint = tiny_llama(tmp_path / "checkpoint", tied=tied)
    artifact = built(checkpoint, weights, tmp_path / "onnx")
    model = LlamaForCausalLM.from_pretrained(checkpoint.folder)
    rounded = tmp_path / "rounded"
    with torch.no_grad():
        for name, module in model.named_modules():
            bits = weights.embedding_bits if name in ("lm_head", "model.embed_tokens") else weights.bits
            again = tied and name == "lm_head"
            if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)) and bits != 32 and not again:
                dense = dequantized(module.weight.numpy().T, bits, weights)
                assert 0 < np.abs(dense.T - module.weight.numpy()).max() < 0.2
                module.weight.copy_(torch.from_numpy(dense.T))
    model.save_pretrained(rounded)
    expected = TransformersEngine.open(
        Artifact(digest="2" * 64, folder=rounded, manifest=checkpoint.manifest),
        EngineSettings(engine="transformers"),
    )
    with expected, OnnxRuntimeEngine.open(artifact, settings()) as engine:
        for ours, theirs in zip(
            engine.score(score_requests()), expected.score(score_requests()), strict=True
        ):
            np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=0.15)
            assert np.abs(ours.logprobs - theirs.logprobs).mean() < 0.03


def dequantized(weights_KN: np.ndarray, bits: int, weights: WeightSettings) -> np.ndarray:
    """The documented layout: low nibble first, groups in order, default zero point 2^(bits - 1)."""
    matrix = round_matrix(weights_KN, bits, weights.group_size, symmetric=weights.symmetric)

    def unpacked(bytes_: np.ndarray) -> np.ndarray:
        return (
            bytes_ if bits == 8 else np.stack([bytes_ & 15, bytes_ >> 4], -1).reshape(*bytes_.shape[:-1], -1)
        )

    zero = 2 ** (bits - 1) * np.ones_like(matrix.scales)
    if matrix.zero_points is not None:
        zero = unpacked(matrix.zero_points)[:, : matrix.scales.shape[1]].astype(np.float32)
    dense = (unpacked(matrix.packed).astype(np.float32) - zero[..., None]) * matrix.scales[..., None]
    return dense.reshape(dense.shape[0], -1)[:, : weights_KN.shape[0]].T


def test_every_linear_layer_is_rounded(artifacts: dict[str, Artifact]) -> None:
    sizes = [(artifacts[name].folder / "model.onnx.data").stat().st_size for name in FORMATS]
    assert sizes[0] > 2.5 * sizes[1] > 2.5 * sizes[2]
    for name, weights in FORMATS.items():
        model = ir.load(artifacts[name].folder / "model.onnx")
        bits = [n.attributes["bits"].as_int() for n in model.graph if n.op_type == "MatMulNBits"]
        assert bits == (
            [] if weights.bits == 32 else [weights.bits] * 15 + [8]
        )  # 3 layers of 5, and the head
        assert not [n for n in model.graph if n.op_type == "MatMul" and weights.bits != 32]
        assert not (artifacts[name].folder / ".f32").exists()


@pytest.mark.parametrize(
    ("weights", "named"),
    [
        (WeightSettings(bits=16), "bits is 16"),
        (WeightSettings(bits=8), "group_size is -1"),
        (WeightSettings(bits=4, group_size=48), "group_size is 48"),
        (WeightSettings(bits=4, group_size=32, calibration="gptq"), "calibration is gptq"),
        (WeightSettings(bits=4, group_size=32, int8_ratio=0.2), "int8_ratio is 0.2"),
        (WeightSettings(bits=4, group_size=32, embedding_bits=16), "embedding_bits is 16"),
    ],
)
def test_impossible_formats_are_refused(
    tmp_path: Path, checkpoint: Artifact, weights: WeightSettings, named: str
) -> None:
    with pytest.raises(CompressionError, match=f"{named}.*use "):
        build_onnx(checkpoint, weights, ("text",), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_without_linear_layers_is_no_result(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    from tasks.compression.onnx_rounding import round_graph

    with pytest.raises(CompressionError, match="rounded no matrix"):
        round_graph(artifacts["int8"].folder / "model.onnx", tmp_path / "model.onnx", FORMATS["int4"])


def test_not_finite_weights_are_refused() -> None:
    weights = np.zeros((32, 4), np.float32)
    weights[3, 1] = np.nan
    with pytest.raises(CompressionError, match="NaN"):
        round_matrix(weights, 8, 32, symmetric=True)


def test_building_is_silent(checkpoint: Artifact, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, handlers = list(sys.path), list(logging.getLogger().handlers)
    build_onnx(checkpoint, FORMATS["int8"], (), tmp_path)
    assert capfd.readouterr().out == ""
    assert sys.path == path
    assert logging.getLogger().handlers == handlers


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"compute": "bf16"}, "compute: bf16"),
        ({"kv_cache": "f16"}, "kv_cache: f16"),
        ({"scheduler": SchedulerSettings(prefix_caching=True)}, "prefix_caching"),
    ],
)
def test_settings_that_are_not_offered_are_refused(
    artifacts: dict[str, Artifact], change: dict[str, object], named: str
) -> None:
    with pytest.raises(EngineUnavailable, match=f"{named}.*openvino"):
        OnnxRuntimeEngine.open(artifacts["f32"], settings().model_copy(update=change))


def test_another_kind_is_refused(checkpoint: Artifact) -> None:
    with pytest.raises(EngineUnavailable, match="checkpoint"):
        OnnxRuntimeEngine.open(checkpoint, settings())


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data"])
def test_a_truncated_graph_is_refused(artifacts: dict[str, Artifact], tmp_path: Path, name: str) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(artifacts["f32"].folder, folder)
    os.truncate(folder / name, (folder / name).stat().st_size // 2)
    damaged = artifacts["f32"].model_copy(update={"folder": folder})
    with pytest.raises(EngineUnavailable, match="build the artifact again"):
        OnnxRuntimeEngine.open(damaged, settings())


@pytest.mark.parametrize("name", FORMATS)
def test_onnxruntime_genai_serves_the_same_folder(artifacts: dict[str, Artifact], name: str) -> None:
    """Its generator is another implementation of the cache and of greedy decoding."""
    import onnxruntime_genai as genai

    model = genai.Model(str(artifacts[name].folder))
    requests = generation_requests()[:4]
    with OnnxRuntimeEngine.open(artifacts[name], settings(max_num_seqs=1)) as engine:
        ours = engine.generate(requests)
    for request, generation in zip(requests, ours, strict=True):
        parameters = genai.GeneratorParams(model)
        length = len(request.prompt) + request.max_new_tokens
        parameters.set_search_options(do_sample=False, max_length=length)
        generator = genai.Generator(model, parameters)
        generator.append_tokens(np.array(request.prompt, np.int32))
        for token in generation.tokens:
            generator.generate_next_token()
            assert generator.get_next_tokens()[0] == token
            if token == EOS:
                break


def test_memory_and_close(artifacts: dict[str, Artifact]) -> None:
    artifact = artifacts["int8"]
    engine = OnnxRuntimeEngine.open(artifact, settings(max_num_seqs=2))
    assert engine.memory().weights_bytes == (artifact.folder / "model.onnx.data").stat().st_size
    assert engine.memory().kv_cache_bytes == 0
    engine.generate([GenerationRequest(p, 4, ignore_eos=True) for p in sequences(3, 6, 6)])
    # slots, tokens, layers, keys and values, heads, width, bytes of f32
    assert engine.memory().kv_cache_bytes == 2 * 10 * 3 * 2 * 2 * 16 * 4
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.generate([GenerationRequest((3,), 1)])


def test_a_request_that_the_cache_cannot_hold(artifacts: dict[str, Artifact]) -> None:
    with (
        OnnxRuntimeEngine.open(artifacts["f32"], settings(cache_mib=16)) as engine,
        pytest.raises(EngineError, match=r"cache_mib is 16.*raise it"),
    ):
        engine.generate([GenerationRequest((3,) * 20, 40_000)])


def test_a_failure_inside_the_library_is_an_engine_error(artifacts: dict[str, Artifact]) -> None:
    unknown = 10_000
    with OnnxRuntimeEngine.open(artifacts["f32"], settings()) as engine:
        with pytest.raises(EngineError, match="ONNX Runtime failed"):
            engine.generate([GenerationRequest((unknown,), 1)])
        with pytest.raises(EngineError, match="ONNX Runtime failed"):
            list(engine.score([ScoreRequest((unknown,), (1,))]))


@pytest.fixture(scope="module")
def with_ranges(checkpoint: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("ranges")
    build_onnx(checkpoint, FORMATS["f32"], TEXTS, out)
    return Artifact(digest="3" * 64, folder=out, manifest=Manifest(kind="onnxruntime", files=()))


def cached(kv_cache: str, **scheduler: object) -> EngineSettings:
    return settings(**scheduler).model_copy(update={"kv_cache": kv_cache})


@pytest.mark.parametrize(("kv_cache", "least", "most"), [("u8", 1e-4, 0.02), ("u4", 0.01, 0.3)])
def test_a_quantized_cache_is_what_attention_reads(
    with_ranges: Artifact, kv_cache: str, least: float, most: float
) -> None:
    """In one pass and in pieces alike, at positions beyond the calibration texts'; and it is not the f32 cache."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(with_ranges.folder / "tokenizer.json"))
    ids = tuple(tokenizer.encode(" ".join(TEXTS)).ids[:100])
    assert max(len(tokenizer.encode(text).ids) for text in TEXTS) < 50
    request = ScoreRequest(ids[:10], ids[10:])
    found = []
    for kind, chunk, batch in (("f32", 0, 2048), (kv_cache, 0, 2048), (kv_cache, 7, 64)):
        with OnnxRuntimeEngine.open(
            with_ranges, cached(kind), chunk_tokens=chunk, batch_tokens=batch
        ) as engine:
            found += [scores.logprobs for scores in engine.score([request])]
    exact, whole, pieces = found
    assert least < np.abs(whole - exact).mean() < most
    np.testing.assert_allclose(pieces, whole, atol=1e-4)


@pytest.mark.parametrize("kv_cache", ["u8", "u4"])
def test_slots_of_a_quantized_cache(with_ranges: Artifact, kv_cache: str) -> None:
    """Prompts in pieces, slots that are freed and moved: every token is what scoring calls the argmax."""
    requests = generation_requests()
    with OnnxRuntimeEngine.open(
        with_ranges, cached(kv_cache, max_num_seqs=3, max_num_batched_tokens=16)
    ) as engine:
        made = engine.generate(requests)
        capacity = max(len(r.prompt) + r.max_new_tokens for r in requests)
        values = 3 * capacity * 3 * 2 * 2 * 16  # slots, tokens, layers, keys and values, heads, width
        assert engine.memory().kv_cache_bytes == (values if kv_cache == "u8" else values // 2)
        scored = engine.score(
            [ScoreRequest(r.prompt, g.tokens) for r, g in zip(requests, made, strict=True)], with_logits=True
        )
        for generation, scores in zip(made, scores_of(scored), strict=True):
            chosen = scores[np.arange(len(scores)), generation.tokens]
            assert (scores.max(-1) - chosen < TIE_NATS).all()


def test_a_quantized_cache_needs_ranges(artifacts: dict[str, Artifact]) -> None:
    with pytest.raises(
        EngineUnavailable, match=r"no kv_ranges.safetensors.*calibration text, or use kv_cache: f32"
    ):
        OnnxRuntimeEngine.open(artifacts["f32"], cached("u8"))
