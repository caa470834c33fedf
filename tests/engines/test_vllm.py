"""vLLM in an environment of its own: what is said where it is missing or breaks, and, where it is there, the real one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_llama import as_artifact
from vllm_here import needs_vllm

from configs.engine import EngineSettings, SchedulerSettings
from configs.load import ConfigError
from configs.serve import ServeSettings
from configs.training import LoraSettings, TrainingSettings
from configs.weights import WeightSettings
from tasks.adaptation.lora import merge_adapter, with_adapter
from tasks.compression.build import build_artifact
from tasks.endpoint.adapters import check_adapter
from tasks.endpoint.vllm import vllm_command
from tasks.engines.open import open_engine
from tasks.engines.protocol import EngineError, EngineUnavailable, GenerationRequest, ScoreRequest
from tasks.engines.streaming import StreamRequest
from tasks.engines.streaming_open import open_streaming
from tasks.engines.vllm_arguments import command_line, engine_arguments, process_environment
from tasks.engines.vllm_engine import VllmEngine
from tasks.store.artifact import Artifact, Manifest
from tasks.store.store import Store
from tasks.training.checkpoint import load_tokenizer

SETTINGS = EngineSettings(
    engine="vllm",
    compute="bf16",
    kv_cache="bf16",
    eager=True,
    scheduler=SchedulerSettings(max_num_seqs=4, cache_mib=64),
)
LORA = LoraSettings(method="lora", rank=16, alpha=32)
PROMPTS = [GenerationRequest(tuple(range(400 + i, 416 + i)), 8, ignore_eos=True) for i in range(6)]


@pytest.fixture
def folder(tmp_path: Path) -> Artifact:
    config = {"num_attention_heads": 4, "hidden_size": 64, "num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 256}))
    return Artifact(digest="0" * 64, folder=tmp_path, manifest=Manifest(kind="checkpoint", files=()))


def test_an_environment_that_is_not_there_names_the_way_out(folder: Artifact, monkeypatch) -> None:
    monkeypatch.setenv("KEIRYO_VLLM_PYTHON", "/no/such/python")
    with pytest.raises(EngineUnavailable, match=r"KEIRYO_VLLM_PYTHON is '/no/such/python'.*make vllm"):
        open_engine(folder, SETTINGS)


def test_an_environment_without_vllm_says_so(folder: Artifact, monkeypatch) -> None:
    monkeypatch.setenv("KEIRYO_VLLM_PYTHON", sys.executable)
    with pytest.raises(EngineUnavailable, match="No module named 'vllm'"):
        open_engine(folder, SETTINGS)


def test_a_process_that_dies_is_an_error_with_its_last_words(folder: Artifact, tmp_path, monkeypatch) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho it broke\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setenv("KEIRYO_VLLM_PYTHON", str(script))
    with pytest.raises(EngineUnavailable, match="it broke"):
        open_engine(folder, SETTINGS)


def test_the_cache_has_the_type_of_the_arithmetic(folder: Artifact) -> None:
    with pytest.raises(EngineUnavailable, match="use kv_cache: f32"):
        open_engine(folder, EngineSettings(engine="vllm", kv_cache="bf16"))


def test_another_kind_of_artifact_is_refused(folder: Artifact) -> None:
    wrong = folder.model_copy(update={"manifest": Manifest(kind="openvino", files=())})
    with pytest.raises(EngineUnavailable, match="cannot load a openvino artifact"):
        open_engine(wrong, SETTINGS)


def test_flags_are_the_arguments_that_were_measured(folder: Artifact) -> None:
    flags = command_line(engine_arguments(folder.folder, SETTINGS, 200))
    assert flags[flags.index("--max-model-len") + 1] == "200"
    assert engine_arguments(folder.folder, SETTINGS)["max_model_len"] == 256  # the model's context
    config = json.loads((folder.folder / "config.json").read_text()) | {"max_position_embeddings": 10**9}
    (folder.folder / "config.json").write_text(json.dumps(config))
    # 64 MiB hold 1,024 blocks of 128 tokens, 512 bytes each; one stays empty.
    assert engine_arguments(folder.folder, SETTINGS, 10**9)["max_model_len"] == 1023 * 128
    assert flags[flags.index("--kv-cache-memory-bytes") + 1] == str(64 * 2**20)
    assert "--no-enable-prefix-caching" in flags
    assert "--enable-chunked-prefill" in flags


def test_an_adapter_that_vllm_has_no_room_for_is_refused(folder: Artifact, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"r": 1024}')
    python = ServeSettings(vllm_command=sys.executable)
    with pytest.raises(ConfigError, match="rank 1024; vLLM takes 512 at most"):
        vllm_command(
            python, SETTINGS, model="m", folder=tmp_path, sequence_tokens=64, adapters={"a": tmp_path}
        )


@pytest.fixture(scope="module")
def int4(shared_store: Store, demo_checkpoint: Artifact) -> Artifact:
    weights = WeightSettings(bits=4, group_size=64, embedding_bits=16)
    return build_artifact(shared_store, demo_checkpoint, "vllm", weights, ())


@pytest.fixture(scope="module")
def engine(int4: Artifact) -> Iterator[VllmEngine]:
    with open_engine(int4, SETTINGS) as opened:
        assert isinstance(opened, VllmEngine)
        yield opened


@needs_vllm
@pytest.mark.model
def test_packed_int4_is_scored_and_batched_as_it_is_served(engine: VllmEngine) -> None:
    sequence = tuple(range(500, 560))
    whole, again = engine.score([ScoreRequest(sequence[:5], sequence[5:])] * 2, with_logits=True)
    assert whole.logits is not None
    assert whole.logits.shape == (55, engine.vocab_size)
    np.testing.assert_allclose(np.exp(whole.logits.astype(np.float64)).sum(-1), 1, atol=1e-4)
    np.testing.assert_array_equal(whole.logits[np.arange(55), sequence[5:]], whole.logprobs)
    np.testing.assert_array_equal(whole.is_argmax, whole.logits.argmax(-1) == np.array(sequence[5:]))
    np.testing.assert_allclose(whole.logprobs, again.logprobs, atol=0.1)  # bf16, in one batch
    together = engine.generate(PROMPTS)  # six of them, four at once
    assert [len(each.tokens) for each in together] == [8] * 6
    assert all(times == tuple(sorted(times)) for times in (each.token_times_s for each in together))
    assert max(each.token_times_s[0] for each in together) > min(
        each.token_times_s[-1] for each in together
    ), "nobody waited for a slot"


@needs_vllm
@pytest.mark.model
def test_a_cancelled_request_is_gone(int4: Artifact) -> None:
    streaming = open_streaming(int4, SETTINGS, sequence_tokens=512)
    try:
        assert streaming.sequence_tokens == 512
        for request_id, prompt in enumerate(PROMPTS[:3]):
            streaming.submit(request_id, StreamRequest(prompt))
        streaming.step()
        streaming.cancel(1)
        ends = {}
        while streaming.busy:
            ends |= {each.request_id: each.end for each in streaming.step() if each.end}
        assert ends == {0: "length", 2: "length"}
    finally:
        streaming.close()


@needs_vllm
@pytest.mark.model
def test_int8_activations_on_the_cpu(shared_store: Store, demo_checkpoint: Artifact) -> None:
    """W8A8 has a kernel in vLLM's CPU build; W8A16 has none, and the refusal says so."""
    w8a8 = WeightSettings(bits=8, embedding_bits=16, activations="int8_dynamic")
    sequence = tuple(range(500, 560))
    with open_engine(build_artifact(shared_store, demo_checkpoint, "vllm", w8a8, ()), SETTINGS) as opened:
        [rounded] = opened.score([ScoreRequest(sequence[:5], sequence[5:])])
    with open_engine(demo_checkpoint, EngineSettings(engine="transformers")) as plain:
        [source] = plain.score([ScoreRequest(sequence[:5], sequence[5:])])
    assert abs(float(rounded.logprobs.mean() - source.logprobs.mean())) < 0.3
    w8a16 = WeightSettings(bits=8, embedding_bits=16)
    with pytest.raises(EngineUnavailable, match="Failed to find a kernel"):
        open_engine(build_artifact(shared_store, demo_checkpoint, "vllm", w8a16, ()), SETTINGS)


@needs_vllm
@pytest.mark.model
def test_its_process_may_be_killed(int4: Artifact) -> None:
    with open_engine(int4, SETTINGS) as opened:
        assert isinstance(opened, VllmEngine)
        opened._process._process.send_signal(signal.SIGKILL)
        with pytest.raises(EngineError, match=r"its process ended|no answer from its process"):
            opened.generate(PROMPTS)


@contextmanager
def served(command: list[str], tmp_path: Path) -> Iterator[Callable[[dict[str, object]], dict[str, Any]]]:
    """A server of vLLM; gives what asks it for a completion."""
    port = command[command.index("--port") + 1]
    environment = os.environ | process_environment(2)
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        yield lambda body: _asked(f"http://127.0.0.1:{port}/v1/completions", body, server)
    finally:
        server.terminate()
        server.wait(60)


def command_of(artifact: Artifact, settings: EngineSettings, **more: Any) -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return vllm_command(
        ServeSettings(port=port),
        settings,
        model="release",
        folder=artifact.folder,
        sequence_tokens=256,
        **more,
    )


def greedy(model: str, request: GenerationRequest) -> dict[str, object]:
    return {
        "model": model, "prompt": list(request.prompt), "max_tokens": request.max_new_tokens, "temperature": 0,
        "ignore_eos": True, "return_token_ids": True,
    }  # fmt: skip


@needs_vllm
@pytest.mark.model
def test_its_own_server_answers_with_the_same_tokens(
    int4: Artifact, engine: VllmEngine, tmp_path: Path
) -> None:
    body = greedy("release", PROMPTS[0])
    del body["temperature"]  # greedy is what it does where nobody asks for more
    with served(command_of(int4, SETTINGS), tmp_path) as ask:
        answer = ask(body)
    assert answer["usage"]["completion_tokens"] == 8
    assert tuple(answer["choices"][0]["token_ids"]) == engine.generate(PROMPTS[:1])[0].tokens


@needs_vllm
@pytest.mark.model
def test_each_request_has_its_own_adapter(demo_checkpoint: Artifact, tmp_path: Path) -> None:
    """Base and adapter in one batch, in float32: each says what transformers says of the base and of the merged checkpoint."""
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    merged.mkdir()
    model = with_adapter(demo_checkpoint.folder, LORA, TrainingSettings(autocast="none"))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(adapter, save_embedding_layers=False)
    merge_adapter(demo_checkpoint, adapter, merged)
    tokenizer = load_tokenizer(demo_checkpoint.folder)
    prompt = GenerationRequest(
        tuple(tokenizer("The keys to the cabinet are on the")["input_ids"]), 8, ignore_eos=True
    )
    expected = {}
    for name, artifact in (("release", demo_checkpoint), ("support", as_artifact(merged))):
        with open_engine(artifact, EngineSettings(engine="transformers")) as plain:
            expected[name] = plain.generate([prompt])[0].tokens
    assert expected["release"] != expected["support"]
    settings = SETTINGS.model_copy(update={"compute": "f32", "kv_cache": "f32"})
    command = command_of(demo_checkpoint, settings, adapters={"support": adapter})
    names = [*expected, *expected]
    with served(command, tmp_path) as ask, ThreadPoolExecutor(len(names)) as pool:
        ask(greedy("release", prompt))  # it is up
        for _ in range(2):
            answers = list(pool.map(ask, [greedy(name, prompt) for name in names]))
            found = [tuple(each["choices"][0]["token_ids"]) for each in answers]
            assert found == [expected[name] for name in names]


def test_an_adapter_of_another_checkpoint_is_refused(folder: Artifact) -> None:
    adapter = folder.model_copy(update={"manifest": Manifest(kind="adapter", files=(), parent="1" * 64)})
    check_adapter(adapter, folder.model_copy(update={"digest": "1" * 64}), "support", "release")
    with pytest.raises(
        ConfigError, match=r"adapters.support: it was trained on checkpoint 1111.*made from 0000"
    ):
        check_adapter(adapter, folder, "support", "release")
    with pytest.raises(ConfigError, match="is checkpoint, not an adapter"):
        check_adapter(folder, folder, "support", "release")
    with pytest.raises(ConfigError, match=r"adapters\.release: the release itself"):
        check_adapter(adapter, folder, "release", "release")


def _asked(url: str, body: dict[str, object], server: subprocess.Popen[bytes]) -> dict[str, Any]:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), headers={"content-type": "application/json"}
    )
    last: OSError | None = None
    for _ in range(180):
        assert server.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.loads(response.read())
        except OSError as error:
            last = error
            time.sleep(1)
    raise AssertionError(f"no answer: {last}")
