"""Speculation on a tiny real model through OpenVINO: what it makes, what it says of itself, and what is refused."""

from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from pydantic import ValidationError
from tiny_llama import tiny_llama

from configs.engine import EngineSettings
from configs.load import ConfigError, load_config
from configs.speculation import DraftModel, PromptLookup
from configs.weights import WeightSettings
from tasks.batching.draft_model import shallow_copy
from tasks.batching.lossless import check_lossless
from tasks.batching.rounds import count_rounds
from tasks.compression.build import build_artifact
from tasks.engines.open import open_engine
from tasks.engines.openvino_engine import OpenVinoEngine
from tasks.engines.protocol import Engine, EngineUnavailable, Generation, GenerationRequest
from tasks.engines.streaming import Sampling, StreamRequest
from tasks.engines.streaming_open import open_streaming
from tasks.store.artifact import Artifact
from tasks.store.store import Store

BLOCK = 3
NEW_TOKENS = 24
_RANDOM = np.random.default_rng(0)
_WORDS = [tuple(int(token) for token in _RANDOM.integers(2, 290, size)) for size in (5, 17, 9, 12)]
# The third one repeats itself, so that there is something to look up.
PROMPTS = [_WORDS[0], _WORDS[1], _WORDS[2] * 4, _WORDS[3]]
REQUESTS = [GenerationRequest(prompt, NEW_TOKENS, ignore_eos=True) for prompt in PROMPTS]


def settings(speculation: PromptLookup | DraftModel | None = None) -> EngineSettings:
    return EngineSettings.model_validate(
        {
            "engine": "openvino", "threads": 2, "scheduler": {"cache_mib": 16, "max_num_seqs": 4, "max_num_batched_tokens": 128},
            "speculation": None if speculation is None else speculation.model_dump(),
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def checkpoint(home: Store) -> Artifact:
    def build(out: Path) -> None:
        tiny_llama(out, layers=4)

    return home.seal(build, kind="checkpoint")


@pytest.fixture(scope="module")
def model(home: Store, checkpoint: Artifact) -> Artifact:
    return build_artifact(home, checkpoint, "openvino", WeightSettings(), ())


@pytest.fixture(scope="module")
def shallow(home: Store, checkpoint: Artifact) -> Artifact:
    return build_artifact(home, shallow_copy(home, checkpoint, 0.5), "openvino", WeightSettings(), ())


@pytest.fixture(scope="module")
def plain(model: Artifact) -> list[Generation]:
    with open_engine(model, settings()) as engine:
        return engine.generate(REQUESTS)


def check(model: Artifact, plain: list[Generation], made: list[Generation]) -> None:
    def scorer(pieces: int) -> Engine:
        return open_engine(model, settings(), chunk_tokens=pieces)

    found = check_lossless(REQUESTS, plain, made, scorer, block=BLOCK, max_tie_nats=0.25)
    assert found.lossless, found
    for request, generation in zip(REQUESTS, made, strict=True):
        assert len(generation.tokens) == len(generation.token_times_s) == request.max_new_tokens
        assert list(generation.token_times_s) == sorted(generation.token_times_s)


def test_prompt_lookup_makes_the_same_tokens_in_fewer_steps(model: Artifact, plain: list[Generation]) -> None:
    with open_engine(model, settings(PromptLookup(block_tokens=BLOCK))) as engine:
        made = engine.generate(REQUESTS)
        assert engine.memory().weights_bytes == (model.folder / "openvino_model.bin").stat().st_size
    check(model, plain, made)
    rounds = count_rounds(made, BLOCK)
    assert rounds.accepted > 0
    assert rounds.rounds < len(REQUESTS) * (NEW_TOKENS - 1)


def test_a_draft_makes_the_same_tokens_and_counts_in_memory(
    model: Artifact, shallow: Artifact, plain: list[Generation]
) -> None:
    drafting = DraftModel(draft=shallow.digest, block_tokens=BLOCK)
    with open_engine(model, settings()) as engine:
        engine.generate(REQUESTS[:1])
        alone = engine.memory()
    with open_engine(model, settings(drafting), draft=shallow) as engine:
        made = engine.generate(REQUESTS)
        held = engine.memory()
    check(model, plain, made)
    assert held.weights_bytes - alone.weights_bytes == (shallow.folder / "openvino_model.bin").stat().st_size
    assert held.kv_cache_bytes == pytest.approx(1.5 * alone.kv_cache_bytes, rel=0.01)  # 2 layers beside 4


def test_a_model_that_drafts_for_itself_is_accepted_and_counted_as_genai_counts(
    model: Artifact, plain: list[Generation]
) -> None:
    drafting = DraftModel(draft=model.digest, block_tokens=BLOCK)
    with OpenVinoEngine.open(model, settings(drafting), draft=model) as engine:
        made = engine.generate(REQUESTS[:2])
        (told,) = engine._served().generate(
            [ov.Tensor(np.array([PROMPTS[0]], np.int64))], [engine._greedy(REQUESTS[0])]
        )
        (alone,) = engine.generate(REQUESTS[:1])
    assert [each.tokens for each in made] == [each.tokens for each in plain[:2]]
    assert count_rounds(made, BLOCK).acceptance > 0.9
    own, genai = count_rounds([alone], BLOCK), told.extended_perf_metrics
    print(
        f"\nours {own.accepted} accepted, GenAI {genai.get_num_accepted_tokens()} of {genai.get_num_draft_tokens()}"
    )
    # The last round is cut by the length: GenAI does not count what it accepted there.
    assert 0 <= own.accepted - genai.get_num_accepted_tokens() <= BLOCK


def test_a_draft_ends_where_it_is_unsure(model: Artifact, shallow: Artifact, plain: list[Generation]) -> None:
    drafting = DraftModel(draft=shallow.digest, min_confidence=0.05)
    with open_engine(model, settings(drafting), draft=shallow) as engine:
        check(model, plain, engine.generate(REQUESTS))


def streamed(
    model: Artifact, drafting: PromptLookup | DraftModel, draft: Artifact | None, sampling: Sampling
) -> list[tuple[int, ...]]:
    engine = open_streaming(model, settings(drafting), sequence_tokens=96, draft=draft)
    made: dict[int, list[int]] = {index: [] for index in range(len(REQUESTS))}
    for index, request in enumerate(REQUESTS):
        engine.submit(index, StreamRequest(request, sampling))
    while engine.busy:
        for progress in engine.step():
            made[progress.request_id] += progress.tokens
    engine.close()
    return [tuple(tokens) for tokens in made.values()]


def test_what_is_streamed_is_what_was_measured(
    model: Artifact, shallow: Artifact, plain: list[Generation]
) -> None:
    for drafting, draft in (
        (PromptLookup(block_tokens=BLOCK), None),
        (DraftModel(draft=shallow.digest, block_tokens=BLOCK), shallow),
    ):
        tokens = streamed(model, drafting, draft, Sampling())
        check(model, plain, [Generation(t, p.token_times_s) for t, p in zip(tokens, plain, strict=True)])
        # Draws are checked by GenAI against the drafted tokens; they end where they should.
        drawn = streamed(model, drafting, draft, Sampling(temperature=0.9, seed=3))
        assert [len(t) for t in drawn] == [NEW_TOKENS] * len(REQUESTS)


def other_tokenizer(out: Path) -> None:
    """The same model, but two ids stand for each other's text."""
    tiny_llama(out, layers=2)
    path = out / "tokenizer.json"
    path.write_text(path.read_text().replace('"a":', '"?":').replace('"b":', '"a":').replace('"?":', '"b":'))


def test_a_draft_with_another_tokenizer_is_refused(home: Store, model: Artifact) -> None:
    foreign = home.seal(other_tokenizer, kind="checkpoint")
    draft = build_artifact(home, foreign, "openvino", WeightSettings(), ())
    drafting = DraftModel(draft=draft.digest, block_tokens=BLOCK)
    with pytest.raises(EngineUnavailable, match="another tokenizer"):
        open_engine(model, settings(drafting), draft=draft)


def test_a_draft_that_was_not_given_or_not_exported_is_refused(model: Artifact, checkpoint: Artifact) -> None:
    with pytest.raises(EngineUnavailable, match="was given none"):
        open_engine(model, settings(DraftModel(draft=checkpoint.digest, block_tokens=BLOCK)))
    with pytest.raises(EngineUnavailable, match="export the draft"):
        open_engine(
            model, settings(DraftModel(draft=checkpoint.digest, block_tokens=BLOCK)), draft=checkpoint
        )


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        ("onnxruntime", "max_draft_tokens_per_proposal 0"),
        ("transformers", "one request at a time"),
        ("vllm", "speculative_config"),
    ],
)
def test_engines_without_it_refuse_and_say_why(engine: str, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        EngineSettings.model_validate({"engine": engine, "speculation": {"kind": "prompt_lookup"}})


@pytest.mark.parametrize("section", ["profile: {baseline", "quality: {reference"])
def test_only_the_batching_stage_turns_it_on(tmp_path: Path, section: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: a\nmodel: {name: tiny, source: {kind: folder, path: model}}\n"
        f"{section}: {{engine: openvino, speculation: {{kind: prompt_lookup}}}}}}\n"
    )
    with pytest.raises(ConfigError, match=r"speculation is chosen and checked by batching\.speculation"):
        load_config(recipe)


@pytest.mark.parametrize(
    ("speculation", "reason"),
    [
        ({"kind": "prompt_lookup", "draft": "0" * 64}, "Extra inputs"),
        ({"kind": "draft_model"}, "Field required"),
        ({"kind": "draft_model", "draft": "0" * 64}, "not both and not neither"),
        ({"kind": "draft_model", "draft": "0" * 64, "block_tokens": 4, "min_confidence": 0.5}, "not both"),
        ({"kind": "prompt_lookup", "block_tokens": 0}, "greater than or equal to 1"),
        ({"kind": "draft_model", "draft": "main", "block_tokens": 4}, "pattern"),
    ],
)
def test_combinations_that_cannot_be_are_refused(speculation: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        EngineSettings.model_validate({"engine": "openvino", "speculation": speculation})
