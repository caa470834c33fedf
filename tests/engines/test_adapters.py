"""Adapters that take turns on one engine: each request is answered by its own, as transformers does with the merged weights."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from tiny_llama import as_artifact, tiny_llama

from configs.engine import EngineSettings, SchedulerSettings
from configs.speculation import PromptLookup
from configs.training import LoraSettings, TrainingSettings
from configs.weights import WeightSettings
from tasks.adaptation.lora import merge_adapter, with_adapter
from tasks.compression.onnx import build_onnx
from tasks.compression.openvino import compress_openvino, export_openvino
from tasks.engines.adapter_turns import AdapterTurns
from tasks.engines.onnxruntime_engine import OnnxRuntimeEngine
from tasks.engines.open import open_engine
from tasks.engines.protocol import EngineUnavailable, GenerationRequest, ScoreRequest
from tasks.engines.streaming import Progress, StreamingEngine, StreamRequest
from tasks.engines.streaming_open import open_streaming
from tasks.store.artifact import Artifact, FileEntry, Manifest

LORAS = {
    "support": LoraSettings(method="lora", rank=4, alpha=8),
    "sales": LoraSettings(method="lora", rank=8, alpha=8, rank_stabilized=True, target_modules=("q_proj", "v_proj", "up_proj")),
}  # fmt: skip
ASKED = (None, "support", None, "sales", "support", "sales", None)
PROMPTS = [GenerationRequest(tuple(range(20 + i, 25 + 2 * i)), 8, ignore_eos=True) for i in range(len(ASKED))]


@dataclass(frozen=True)
class Adapted:
    """A checkpoint, two adapters of it, and what transformers says with each merged."""

    artifacts: dict[str, Artifact]
    adapters: dict[str, Path]
    merged: dict[str | None, Artifact]
    expected: list[tuple[int, ...]]


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    folder = tmp_path_factory.mktemp("adapted")
    checkpoint = tiny_llama(folder / "model")
    adapters, merged = {}, {None: checkpoint}
    for name, lora in LORAS.items():
        adapters[name] = write_adapter(checkpoint, lora, folder / name)
        out = folder / f"{name}-merged"
        out.mkdir()
        merge_adapter(checkpoint, adapters[name], out)
        merged[name] = as_artifact(out)
    expected = [said_by(merged[name], prompt) for name, prompt in zip(ASKED, PROMPTS, strict=True)]
    assert expected[1] != said_by(checkpoint, PROMPTS[1])
    assert expected[3] != said_by(checkpoint, PROMPTS[3])
    artifacts = {}
    for engine, build in (
        ("openvino", export_openvino),
        ("onnxruntime", lambda source, out: build_onnx(source, WeightSettings(), (), out)),
    ):
        (folder / engine).mkdir()
        build(checkpoint, folder / engine)
        artifacts[engine] = artifact_of(folder / engine, engine)
    return Adapted(artifacts, adapters, merged, expected)


def write_adapter(checkpoint: Artifact, lora: LoraSettings, out: Path) -> Path:
    torch.manual_seed(len(out.name))
    model = with_adapter(checkpoint.folder, lora, TrainingSettings(autocast="none"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2)
    model.save_pretrained(out, save_embedding_layers=False)
    return out


def artifact_of(folder: Path, kind: str) -> Artifact:
    return Artifact(digest="1" * 64, folder=folder, manifest=Manifest(kind=kind, files=()))  # type: ignore[arg-type]


def said_by(checkpoint: Artifact, prompt: GenerationRequest) -> tuple[int, ...]:
    with open_engine(checkpoint, EngineSettings(engine="transformers", threads=1)) as engine:
        return engine.generate([prompt])[0].tokens


def settings(engine: str, **more: object) -> EngineSettings:
    scheduler = SchedulerSettings(max_num_seqs=3, max_num_batched_tokens=64, cache_mib=16)
    return EngineSettings(engine=engine, threads=1, **{"scheduler": scheduler, **more})  # type: ignore[arg-type]


def answers(engine: StreamingEngine, steps: int = 500) -> dict[int, tuple[int, ...]]:
    made: dict[int, tuple[int, ...]] = {}
    while engine.busy:
        assert steps, "it never comes to an end"
        steps -= 1
        for progress in engine.step():
            made[progress.request_id] = made.get(progress.request_id, ()) + progress.tokens
    return made


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_each_request_is_answered_with_its_adapter(adapted: Adapted, engine: str) -> None:
    """Base and two adapters of other ranks and layers, asked in turn, twice over: what an adapter leaves would show."""
    opened = open_streaming(
        adapted.artifacts[engine], settings(engine), sequence_tokens=64, adapters=adapted.adapters
    )
    for round_ in range(2):
        ids = range(round_ * len(ASKED), (round_ + 1) * len(ASKED))
        for request_id, prompt, name in zip(ids, PROMPTS, ASKED, strict=True):
            opened.submit(request_id, StreamRequest(prompt, adapter=name))
        made = answers(opened)
        assert [made[request_id] for request_id in ids] == adapted.expected
    opened.close()


def test_on_rounded_weights_an_adapter_does_what_it_does_on_the_exact_ones(
    adapted: Adapted, tmp_path: Path
) -> None:
    """OpenVINO int8 with rounded activations and cache, as releases are: nearer to its own merged checkpoint than to any other's."""
    (tmp_path / "int8").mkdir()
    exported = adapted.artifacts["openvino"]
    files = tuple(
        FileEntry(path=each.name, sha256="0" * 64, size_bytes=0) for each in exported.folder.iterdir()
    )
    parent = exported.model_copy(update={"manifest": Manifest(kind="openvino", files=files)})
    compress_openvino(parent, WeightSettings(bits=8, symmetric=False), (), tmp_path / "int8")
    engine = open_streaming(
        artifact_of(tmp_path / "int8", "openvino"),
        settings("openvino", kv_cache="u8", activation_group=32),
        sequence_tokens=64,
        adapters=adapted.adapters,
    )
    names = (None, *adapted.adapters)
    for request_id, (prompt, name) in enumerate((prompt, name) for prompt in PROMPTS for name in names):
        engine.submit(request_id, StreamRequest(prompt, adapter=name))
    made = answers(engine)
    engine.close()
    exact = {name: [said_by(adapted.merged[name], prompt) for prompt in PROMPTS] for name in names}
    for place, name in enumerate(names):
        found = [made[len(names) * i + place] for i in range(len(PROMPTS))]
        same = {other: sum(map(agreeing, found, exact[other])) for other in names}
        assert max(same, key=lambda other: same[other]) == name, same
        assert same[name] > 0.6 * sum(len(each) for each in found), same


def agreeing(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    """Tokens before the first difference."""
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=True)) if a != b), len(left))


def test_products_that_were_split_and_fused_ones_are_both_adapted(adapted: Adapted, tmp_path: Path) -> None:
    """int4 with the values of two layers at 8 bits: each adapter scores nearest to its own merged checkpoint."""
    weights = WeightSettings(
        bits=4, group_size=32, int8_layers=tuple(f"model.layers.{i}.self_attn.v_proj" for i in (0, 2))
    )
    (tmp_path / "onnx").mkdir()
    build_onnx(adapted.merged[None], weights, (), tmp_path / "onnx")

    request = ScoreRequest((20, 21, 22), tuple(range(30, 50)))
    rounded = artifact_of(tmp_path / "onnx", "onnxruntime")
    found = {}
    with OnnxRuntimeEngine.open(rounded, settings("onnxruntime"), adapters=adapted.adapters) as engine:
        for name in (None, *adapted.adapters):
            engine.use_adapter(name)
            found[name] = next(iter(engine.score([request]))).logprobs
    for name, checkpoint in adapted.merged.items():
        with open_engine(checkpoint, EngineSettings(engine="transformers", threads=1)) as plain:
            exact = next(iter(plain.score([request]))).logprobs
        near = {other: abs(each - exact).mean() for other, each in found.items()}
        assert min(near, key=lambda other: near[other]) == name, near
        assert near[name] < 0.5 * min(value for other, value in near.items() if other != name)


def test_what_cannot_be_added_to_a_product_is_refused(adapted: Adapted, tmp_path: Path) -> None:
    checkpoint = adapted.merged[None]
    dora = write_adapter(checkpoint, LoraSettings(method="dora", rank=4), tmp_path / "dora")
    for engine in ("openvino", "onnxruntime"):
        with pytest.raises(EngineUnavailable, match=r"dora is a DoRA adapter.*merge it"):
            open_streaming(
                adapted.artifacts[engine], settings(engine), sequence_tokens=64, adapters={"a": dora}
            )
    other = write_adapter(tiny_llama(tmp_path / "deeper", layers=4), LORAS["support"], tmp_path / "other")
    with pytest.raises(EngineUnavailable, match=r"change model\.layers\.3.*merge them"):
        open_streaming(
            adapted.artifacts["onnxruntime"],
            settings("onnxruntime"),
            sequence_tokens=64,
            adapters={"a": other},
        )
    with pytest.raises(EngineUnavailable, match="transformers is not opened with adapters"):
        open_streaming(checkpoint, settings("transformers"), sequence_tokens=64, adapters=adapted.adapters)


@pytest.mark.parametrize(
    ("setting", "more"),
    [
        ("prefix_caching", {"scheduler": SchedulerSettings(prefix_caching=True)}),
        ("speculation", {"speculation": PromptLookup(block_tokens=2)}),
    ],
)
def test_what_would_carry_over_from_one_adapter_to_the_next_is_refused(
    adapted: Adapted, setting: str, more: Mapping[str, object]
) -> None:
    with pytest.raises(EngineUnavailable, match=f"do not go with .*{setting}"):
        open_streaming(
            adapted.artifacts["openvino"],
            settings("openvino", **more),
            sequence_tokens=64,
            adapters=adapted.adapters,
        )


@dataclass
class Ledger:
    """An engine that makes two tokens a request and writes down who was served with what."""

    settings: EngineSettings = field(default_factory=lambda: settings("openvino"))
    samples: bool = True
    sequence_tokens: int = 64
    slots: int = 3
    in_use: str | None = None
    switches: list[str | None] = field(default_factory=list)
    served: list[tuple[int, str | None]] = field(default_factory=list)
    running: deque[list[int]] = field(default_factory=deque)

    @property
    def busy(self) -> bool:
        return bool(self.running)

    def submit(self, request_id: int, request: StreamRequest) -> None:
        assert request.adapter == self.in_use
        self.served.append((request_id, self.in_use))
        self.running.append([request_id, 2])

    def cancel(self, request_id: int) -> None:
        self.running = deque(each for each in self.running if each[0] != request_id)

    def use_adapter(self, name: str | None) -> None:
        assert not self.running
        self.in_use = name
        self.switches.append(name)

    def step(self) -> list[Progress]:
        made = []
        for each in self.running:
            each[1] -= 1
            made.append(Progress(each[0], (7,), None if each[1] else "length"))
        self.running = deque(each for each in self.running if each[1])
        return made

    def close(self) -> None:
        return None


def asked(name: str | None) -> StreamRequest:
    return StreamRequest(GenerationRequest((1,), 2), adapter=name)


def test_nobody_is_overtaken_for_ever() -> None:
    """Requests for the adapter in use come in every step; the other one is next all the same."""
    engine = Ledger()
    turns = AdapterTurns(engine)
    turns.submit(0, asked(None))
    turns.step()
    turns.submit(1, asked(None))  # joins
    turns.submit(2, asked("support"))
    for request_id in (3, 4, 5):
        turns.submit(request_id, asked(None))
        turns.step()
    answers(turns)
    assert [request_id for request_id, _ in engine.served] == [0, 1, 2, 3, 4, 5]
    assert engine.switches == ["support", None]


def test_a_turn_takes_all_that_wait_for_it() -> None:
    engine = Ledger()
    turns = AdapterTurns(engine)
    for request_id, name in enumerate(("a", "b", "a", None, "b")):
        turns.submit(request_id, asked(name))
    answers(turns)
    assert engine.served == [(0, "a"), (2, "a"), (1, "b"), (4, "b"), (3, None)]


def test_who_waits_can_leave() -> None:
    engine = Ledger()
    turns = AdapterTurns(engine)
    turns.submit(0, asked(None))
    turns.submit(1, asked("a"))
    turns.submit(2, asked("b"))
    turns.cancel(1)
    turns.cancel(0)
    answers(turns)
    assert engine.served == [(0, None), (2, "b")]
    assert engine.switches == ["b"]
