"""`keiryo serve` as a user starts it: a registered champion on OpenVINO, its own process, OpenAI's client."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
import torch
from served import LONG_S, until
from tiny_llama import as_artifact, tiny_llama

from configs.engine import EngineSettings, SchedulerSettings
from configs.load import ConfigError
from configs.training import LoraSettings, TrainingSettings
from flows import serving
from tasks.adaptation.lora import merge_adapter, with_adapter
from tasks.compression.openvino import export_openvino
from tasks.endpoint.engine_process import EngineProcess, Submit
from tasks.engines.open import open_engine
from tasks.engines.openvino_engine import OpenVinoEngine
from tasks.engines.protocol import EngineError, GenerationRequest, ScoreRequest
from tasks.engines.streaming import Progress, Sampling, StreamRequest
from tasks.quality.tokenizer import TextTokenizer
from tasks.release.candidate import Candidate
from tasks.release.history import ReleaseVersion
from tasks.store.artifact import Artifact
from tasks.store.digest import PROJECT_ROOT
from tasks.store.errors import DamagedArtifact
from tasks.store.store import Store

MODEL = "tiny-llama"
REQUESTS = 200
NEW_TOKENS = 12
ENDLESS_TOKENS = 20_000  # nobody waits for these: only a request that is given up ends before
CONTEXT_TOKENS = 30_000
SURE_LOGITS = (
    1e-3  # a batch rounds otherwise than one request alone; a token that leads by more stays the first
)
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
ENGINE = EngineSettings(
    engine="openvino",
    threads=1,
    scheduler=SchedulerSettings(max_num_seqs=16, max_num_batched_tokens=64, cache_mib=16),
)


@dataclass(frozen=True)
class Home:
    """A store with one artifact, its checkpoint and an adapter of that, and a registry with one champion."""

    folder: Path
    checkpoint: Artifact
    artifact: Artifact
    adapter: Artifact

    @property
    def candidate(self) -> Candidate:
        return Candidate(name="tiny", artifact=self.artifact.digest, engine=ENGINE, weights="f32")

    @property
    def environment(self) -> dict[str, str]:
        ours = {"KEIRYO_HOME": str(self.folder / "home"), "KEIRYO_MLFLOW": str(self.folder / "mlflow")}
        return {**os.environ, **ours, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder = tmp_path_factory.mktemp("release")
    store = Store(folder / "home")
    checkpoint = store.seal(lambda out: tiny_llama(out, layers=2), kind="checkpoint")
    adapter = store.seal(lambda out: write_adapter(checkpoint, out), kind="adapter", parent=checkpoint.digest)

    def build(out: Path) -> None:
        export_openvino(checkpoint, out)
        (out / "chat_template.jinja").write_text(TEMPLATE)
        config = json.loads((out / "config.json").read_text()) | {"max_position_embeddings": CONTEXT_TOKENS}
        (out / "config.json").write_text(json.dumps(config))

    artifact = store.seal(build, kind="openvino", parent=checkpoint.digest)
    made = Home(folder, checkpoint, artifact, adapter)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEIRYO_MLFLOW", str(folder / "mlflow"))
        register(made.candidate)
    return made


def write_adapter(checkpoint: Artifact, out: Path) -> None:
    torch.manual_seed(0)
    model = with_adapter(checkpoint.folder, LoraSettings(method="lora"), TrainingSettings(autocast="none"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2)
    model.save_pretrained(out, save_embedding_layers=False)


def register(candidate: Candidate) -> None:
    from tasks.tracking.store import open_tracking

    client = open_tracking().client
    client.create_registered_model(MODEL)
    tags = {
        "keiryo.stage": "quantize",
        "keiryo.candidate": candidate.model_dump_json(),
        "keiryo.verdict": "PASS",
        "keiryo.rollout": "none",
    }
    client.create_model_version(MODEL, candidate.artifact, tags=tags)
    client.set_registered_model_alias(MODEL, "champion", "1")


@dataclass(frozen=True)
class Expected:
    """Prompts whose greedy answers no rounding can change, and these answers as the engine's `generate` gives them."""

    prompts: list[str]
    answers: list[str]


@pytest.fixture(scope="module")
def expected(home: Home) -> Expected:
    text = TextTokenizer(home.artifact.folder)
    prompts = [f"key {number} of the cabinet" for number in range(REQUESTS * 3)]
    ids = [tuple(text.encode(prompt)) for prompt in prompts]
    kept = Expected([], [])
    with OpenVinoEngine.open(home.artifact, ENGINE) as engine:
        made = engine.generate([GenerationRequest(each, NEW_TOKENS) for each in ids])
        asked = [ScoreRequest(each, answer.tokens) for each, answer in zip(ids, made, strict=True)]
        for prompt, answer, score in zip(prompts, made, engine.score(asked, with_logits=True), strict=True):
            assert score.logits is not None
            best_two = np.sort(score.logits, -1)[:, -2:]
            said = text.decode(answer.tokens)
            if np.diff(best_two).min() > SURE_LOGITS and said not in kept.answers:
                kept.prompts.append(prompt)
                kept.answers.append(said)
    assert len(kept.prompts) >= REQUESTS, f"only {len(kept.prompts)} prompts tell themselves apart"
    return Expected(kept.prompts[:REQUESTS], kept.answers[:REQUESTS])


@dataclass(frozen=True)
class Running:
    """A server process and a client of it."""

    process: subprocess.Popen[str]
    url: str
    client: openai.OpenAI


@contextmanager
def started(home: Home, *settings: str) -> Iterator[Running]:
    """`keiryo serve` in a process of its own until the block ends."""
    code = "from flows.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", MODEL, "port=0", *settings, "--json"]
    with subprocess.Popen(
        command, cwd=PROJECT_ROOT, env=home.environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, "the server ended before it listened"
            url = json.loads(line)["url"]
            with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=LONG_S) as client:
                yield Running(process, url, client)
        finally:
            process.kill()


@pytest.fixture
def running(home: Home) -> Iterator[Running]:
    with started(home, f"limits.new_tokens={ENDLESS_TOKENS}") as server:
        yield server


def metric(server: Running, name: str) -> float:
    lines = httpx.get(server.url.replace("/v1", "/metrics")).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def test_a_champion_is_served(running: Running, expected: Expected) -> None:
    """One start of the server for everything that a client sees: the start is what costs."""
    the_answers_of_the_engine(running, expected)
    two_hundred_at_once(running, expected)
    a_hang_up_frees_its_slot(running)
    draws_are_repeatable(running)
    sigterm_finishes_what_runs(running, expected)


def the_answers_of_the_engine(running: Running, expected: Expected) -> None:
    prompt, answer = expected.prompts[0], expected.answers[0]
    client = running.client
    made = client.completions.create(model=MODEL, prompt=prompt, max_tokens=NEW_TOKENS)
    assert made.choices[0].text == answer
    assert made.usage is not None
    assert made.usage.completion_tokens <= NEW_TOKENS
    turns = [{"role": "user", "content": prompt[:9]}, {"role": "user", "content": prompt[9:]}]
    chat = client.chat.completions.create(model=MODEL, messages=turns, max_tokens=NEW_TOKENS)  # type: ignore[arg-type]
    assert chat.choices[0].message.content == answer
    stream = client.completions.create(model=MODEL, prompt=prompt, max_tokens=NEW_TOKENS, stream=True)
    pieces = [chunk.choices[0].text for chunk in stream]
    assert "".join(pieces) == answer
    assert len(pieces) > 1
    middle = answer[len(answer) // 2 :][:2]
    cut = client.completions.create(model=MODEL, prompt=prompt, max_tokens=NEW_TOKENS, stop=middle)
    assert cut.choices[0].text == answer[: answer.index(middle)]
    assert cut.choices[0].finish_reason == "stop"
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt=prompt)
    with pytest.raises(openai.BadRequestError) as too_long:
        client.completions.create(model=MODEL, prompt="x" * 3000)
    assert too_long.value.code == "context_length_exceeded"


def two_hundred_at_once(running: Running, expected: Expected) -> None:
    start = threading.Barrier(REQUESTS)

    def one(number: int) -> str:
        start.wait(LONG_S)
        if number % 2:
            made = running.client.completions.create(
                model=MODEL, prompt=expected.prompts[number], max_tokens=NEW_TOKENS
            )
            return made.choices[0].text
        stream = running.client.completions.create(
            model=MODEL, prompt=expected.prompts[number], max_tokens=NEW_TOKENS, stream=True
        )
        return "".join(chunk.choices[0].text for chunk in stream)

    with ThreadPoolExecutor(REQUESTS) as pool:
        assert list(pool.map(one, range(REQUESTS))) == expected.answers
    assert len(set(expected.answers)) == REQUESTS  # a mixed-up answer would have been seen


def a_hang_up_frees_its_slot(running: Running) -> None:
    before = metric(running, "keiryo_generated_tokens_total")
    stream = running.client.completions.create(
        model=MODEL, prompt="the", max_tokens=ENDLESS_TOKENS, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    until(lambda: metric(running, "keiryo_requests_running") == 0)
    until(lambda: metric(running, 'keiryo_requests_total{route="/v1/completions",status="499"}') == 1)
    assert metric(running, "keiryo_generated_tokens_total") - before < ENDLESS_TOKENS


def draws_are_repeatable(running: Running) -> None:
    def draw(seed: int) -> str:
        made = running.client.completions.create(
            model=MODEL, prompt="the", max_tokens=NEW_TOKENS, temperature=1.5, seed=seed,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        return made.choices[0].text

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(5)}) > 1


def sigterm_finishes_what_runs(running: Running, expected: Expected) -> None:
    stream = running.client.completions.create(
        model=MODEL,
        prompt="the",
        max_tokens=400,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    events = iter(stream)
    next(events)
    running.process.send_signal(signal.SIGTERM)
    *_, last = events
    assert last.usage is not None
    assert last.usage.completion_tokens == 400
    assert running.process.wait(LONG_S) == 0
    with pytest.raises(openai.APIConnectionError):
        running.client.completions.create(model=MODEL, prompt=expected.prompts[0])


def test_a_damaged_artifact_is_not_served(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(home.folder / "home", tmp_path / "home")
    weights = tmp_path / "home" / "artifacts" / home.artifact.digest / "openvino_model.bin"
    weights.chmod(0o644)
    with weights.open("r+b") as handle:
        handle.write(b"\x01\x02\x03")
    champion = ReleaseVersion(
        model=MODEL, version=1, stage="quantize", candidate=home.candidate, verdict="PASS", rollout="none"
    )
    monkeypatch.setattr(serving, "_champion", lambda _: champion)
    monkeypatch.setenv("KEIRYO_HOME", str(tmp_path / "home"))
    announced: list[serving.Serving] = []
    with pytest.raises(DamagedArtifact, match=r"openvino_model\.bin: expected sha256"):
        serving.serve(MODEL, ["port=0"], announced.append)
    assert announced == []


def test_adapters_are_asked_for_by_name(home: Home, expected: Expected, tmp_path: Path) -> None:
    """Release and adapter at once, streamed and whole: each answer is that of its own weights."""
    merge_adapter(home.checkpoint, home.adapter.folder, tmp_path)
    prompts = expected.prompts[:6]
    text = TextTokenizer(home.artifact.folder)
    with open_engine(as_artifact(tmp_path), EngineSettings(engine="transformers", threads=1)) as merged:
        made = merged.generate([GenerationRequest(tuple(text.encode(each)), NEW_TOKENS) for each in prompts])
    adapted = [text.decode(each.tokens) for each in made]
    assert not set(adapted) & set(expected.answers)

    with started(home, f"adapters.support={home.adapter.digest}") as server, ThreadPoolExecutor(12) as pool:
        assert [each.id for each in server.client.models.list()] == [MODEL, "support"]

        def ask(name: str, prompt: str) -> str:
            answer = server.client.completions.create(model=name, prompt=prompt, max_tokens=NEW_TOKENS)
            assert answer.model == name
            return answer.choices[0].text

        names = [MODEL, "support"] * len(prompts)
        answers = list(pool.map(ask, names, [each for each in prompts for _ in range(2)]))
    assert answers[::2] == expected.answers[: len(prompts)]
    assert answers[1::2] == adapted


def test_an_adapter_of_another_checkpoint_is_not_served(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    champion = ReleaseVersion(
        model=MODEL, version=1, stage="quantize", candidate=home.candidate, verdict="PASS", rollout="none"
    )
    monkeypatch.setattr(serving, "_champion", lambda _: champion)
    monkeypatch.setenv("KEIRYO_HOME", str(home.folder / "home"))
    other = Store(home.folder / "home").seal(
        lambda out: write_adapter(home.checkpoint, out), kind="adapter", parent="1" * 64
    )
    with pytest.raises(ConfigError, match=r"adapters\.support: it was trained on checkpoint 1111.*made from"):
        serving.serve(MODEL, ["port=0", f"adapters.support={other.digest}"], lambda _: None)


def test_an_engine_that_dies_is_noticed(home: Home) -> None:
    link = EngineProcess(home.artifact, ENGINE, sequence_tokens=10**6)
    assert link.opened.sequence_tokens == CONTEXT_TOKENS  # the model's own
    made: list[Progress] = []
    died: list[str] = []
    link.start(made.extend, died.append)
    link.send(
        Submit(3, StreamRequest(GenerationRequest((5, 6, 7), ENDLESS_TOKENS, ignore_eos=True), Sampling()))
    )
    until(lambda: bool(made))
    assert made[0].request_id == 3
    assert link._process.pid is not None
    os.kill(link._process.pid, signal.SIGKILL)
    until(lambda: bool(died))
    assert "code -9" in died[0]
    link.stop()


def test_an_engine_that_cannot_open_says_why(home: Home) -> None:
    wrong = ENGINE.model_copy(update={"engine": "onnxruntime"})
    with pytest.raises(EngineError, match="cannot load a openvino artifact"):
        EngineProcess(home.artifact, wrong, sequence_tokens=64)
