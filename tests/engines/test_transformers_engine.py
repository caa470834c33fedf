import numpy as np
import pytest
import torch
from tiny_llama import tiny_llama

from configs.engine import EngineSettings, SchedulerSettings
from tasks.engines.protocol import EngineUnavailable, GenerationRequest, ScoreRequest
from tasks.engines.transformers_engine import TransformersEngine
from tasks.store.artifact import Artifact

PROMPTS = ((5, 6, 7, 8), (40, 41), (100, 3, 77, 12, 9, 60, 61))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "model")


def _engine(checkpoint: Artifact, max_num_seqs: int = 1, use_kv_cache: bool = True) -> TransformersEngine:
    scheduler = SchedulerSettings(max_num_seqs=max_num_seqs)
    return TransformersEngine.open(
        checkpoint, EngineSettings(engine="transformers", use_kv_cache=use_kv_cache, scheduler=scheduler)
    )


def test_scores_are_the_log_softmax_of_the_model(checkpoint: Artifact) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint.folder)
    requests = [ScoreRequest(p[: len(p) // 2], p[len(p) // 2 :]) for p in PROMPTS]
    with _engine(checkpoint) as engine:
        scores = list(engine.score(requests, with_logits=True))
        plain = list(engine.score(requests))
    for prompt, request, score, bare in zip(PROMPTS, requests, scores, plain, strict=True):
        with torch.inference_mode():
            logits_TV = model(torch.tensor([prompt])).logits[0, len(request.context) - 1 : -1]
        expected = torch.log_softmax(logits_TV, -1)[torch.arange(len(request.targets)), list(request.targets)]
        np.testing.assert_allclose(score.logprobs, expected.numpy(), atol=1e-4)
        np.testing.assert_allclose(score.logits, logits_TV.numpy(), atol=1e-4)
        assert score.is_argmax.tolist() == (logits_TV.argmax(-1) == torch.tensor(request.targets)).tolist()
        np.testing.assert_array_equal(score.logprobs, bare.logprobs)
        assert bare.logits is None


def test_greedy_tokens_are_those_of_generate_in_any_batch(checkpoint: Artifact) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint.folder)
    requests = [GenerationRequest(p, max_new_tokens=4 + i, ignore_eos=True) for i, p in enumerate(PROMPTS)]
    expected = [
        tuple(
            model.generate(
                torch.tensor([r.prompt]), max_new_tokens=r.max_new_tokens, do_sample=False, eos_token_id=None
            )[0, len(r.prompt) :].tolist()
        )
        for r in requests
    ]
    for size, cached in ((1, True), (3, True), (2, False)):
        with _engine(checkpoint, size, cached) as engine:
            made = engine.generate(requests)
        assert [g.tokens for g in made] == expected
        assert all(len(g.tokens) == len(g.token_times_s) for g in made)
    assert made[2].token_times_s[0] > made[0].token_times_s[-1]  # the second static batch waits for the first


def test_eos_stops_unless_ignored(checkpoint: Artifact) -> None:
    with _engine(checkpoint) as engine:
        engine._stop = frozenset(
            [engine.generate([GenerationRequest((5, 6), 6, ignore_eos=True)])[0].tokens[2]]
        )
        stopped = engine.generate([GenerationRequest((5, 6), 6)])[0]
        assert len(stopped.tokens) <= 3
        assert stopped.tokens[-1] in engine._stop


def test_a_cache_of_another_type_is_refused(checkpoint: Artifact) -> None:
    with pytest.raises(EngineUnavailable, match="kv_cache: bf16"):
        TransformersEngine.open(checkpoint, EngineSettings(engine="transformers", kv_cache="bf16"))


CUDA = EngineSettings(engine="transformers", device="cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused_in_one_line(checkpoint: Artifact) -> None:
    with pytest.raises(EngineUnavailable, match=r"device: cuda needs an NVIDIA GPU.*use device: cpu"):
        TransformersEngine.open(checkpoint, CUDA)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_scores_and_generates_what_the_cpu_does(checkpoint: Artifact) -> None:
    requests = [ScoreRequest(p[:1], p[1:]) for p in PROMPTS]
    prompts = [GenerationRequest(p, 6, ignore_eos=True) for p in PROMPTS]
    with _engine(checkpoint) as cpu, TransformersEngine.open(checkpoint, CUDA) as gpu:
        for here, there in zip(cpu.score(requests), gpu.score(requests), strict=True):
            np.testing.assert_allclose(here.logprobs, there.logprobs, atol=1e-3)
        assert [g.tokens for g in gpu.generate(prompts)] == [g.tokens for g in cpu.generate(prompts)]


def test_engines_without_a_gpu_path_refuse_one() -> None:
    with pytest.raises(ValueError, match=r"scheduler\.threads is not offered by engine: transformers"):
        EngineSettings(engine="transformers", scheduler=SchedulerSettings(threads=1))
    with pytest.raises(ValueError, match="device: cuda is not offered by engine: openvino"):
        EngineSettings(engine="openvino", device="cuda")
