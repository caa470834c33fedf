"""Long context on a tiny model: every cache type at every length, beside the closed form, and what is refused."""

import csv
import io

import pytest
from tiny_llama import tiny_llama

from configs.engine import EngineSettings
from configs.load import ConfigError
from configs.model import FolderSource, ModelSettings
from configs.quantize import QuantizeSettings
from configs.schema import Config
from configs.weights import WeightSettings
from tasks.engines.protocol import EngineError
from tasks.models.checkpoint import Architecture
from tasks.profiling.cache_memory import kv_cache_bytes
from tasks.quantization import long_context
from tasks.quantization.candidate_needs import predict
from tasks.quantization.long_context import (
    at_long_context,
    check_contexts,
    long_context_csv,
    long_context_metrics,
    long_engine,
)
from tasks.release.measuring import make_candidate
from tasks.release.preparation import make_workspace
from tasks.release.workspace import Workspace

SMOL = Architecture(
    model_type="llama", layers=30, hidden=576, intermediate=1536, heads=9, kv_heads=3, head_dim=64,
    vocabulary=49152, tied_embeddings=True, parameters=134_515_008, context_tokens=8192, dtype="F32",
)  # fmt: skip
OPENVINO = EngineSettings(engine="openvino", kv_cache="f32")
CONTEXTS = (32, 200)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root = tmp_path_factory.mktemp("long")
    tiny_llama(root / "model", layers=2)
    config = Config.model_validate(
        {
            "name": "long",
            "model": ModelSettings(name="tiny", source=FolderSource(kind="folder", path=str(root / "model"))),
            "quality": {
                "margins": {"accuracy": None},
                "text": {"section_characters": 200, "search_sections": 4},
                "tries": 1,
            },
            "quantize": {
                "candidates": [
                    {
                        "engine": "openvino",
                        "weights": {"bits": 8, "symmetric": False},
                        "kv_cache": ["f32", "u8"],
                    }
                ],
                "long_context_tokens": list(CONTEXTS),
            },
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEIRYO_HOME", str(root / "store"))
        return make_workspace(config)


def test_every_cache_type_at_every_length(workspace):
    rows = []
    for kv_cache in ("f32", "u8"):
        engine = EngineSettings(engine="openvino", kv_cache=kv_cache)
        candidate = make_candidate(
            workspace, workspace.source, engine, WeightSettings(bits=8, symmetric=False)
        )
        rows += [(candidate, row) for row in at_long_context(workspace, candidate)]
    assert [row.context_tokens for _, row in rows] == [*CONTEXTS, *CONTEXTS]
    assert all(row.decode_tokens_per_s > 0 and row.ttft_ms > 0 and row.peak_mib > 0 for _, row in rows)
    full, rounded = rows[1][1], rows[3][1]
    closed = kv_cache_bytes(workspace.architecture, context_tokens=224, batch=1, kv_cache="f32")
    assert full.kv_mib == closed / 2**20  # 216 tokens in whole blocks of 32
    assert rounded.kv_mib < 0.35 * full.kv_mib
    assert full.kv_factor == 0.5
    table = list(csv.DictReader(io.StringIO(long_context_csv(rows))))
    assert [line["kv_cache"] for line in table] == ["f32", "f32", "u8", "u8"]
    assert float(table[1]["kv_mib_without_gqa"]) == pytest.approx(2 * full.kv_mib, abs=1e-3)
    metrics = long_context_metrics([full])
    assert metrics["perf/context_200/decode_tokens_per_s"] == full.decode_tokens_per_s
    assert metrics["mem/context_200/kv_mib"] == full.kv_mib


def test_it_is_measured_once(workspace, monkeypatch):
    candidate = make_candidate(workspace, workspace.source, OPENVINO, WeightSettings(bits=8, symmetric=False))
    before = at_long_context(workspace, candidate)
    monkeypatch.setattr("tasks.release.measuring.served_alone", lambda *_: pytest.fail("measured again"))
    assert at_long_context(workspace, candidate) == before


def test_a_failure_names_the_length(workspace, monkeypatch):
    candidate = make_candidate(
        workspace,
        workspace.source,
        OPENVINO.model_copy(update={"kv_cache": "u4"}),
        WeightSettings(bits=8, symmetric=False),
    )

    def killed(*_):
        raise EngineError("the process that served it did not answer; it ended with status -9")

    monkeypatch.setattr("tasks.release.measuring.served_alone", killed)
    with pytest.raises(EngineError, match=r"with 32 tokens of context: the process .* status -9"):
        at_long_context(workspace, candidate)


def test_the_pool_holds_one_sequence_and_no_more():
    engine = long_engine(SMOL, OPENVINO, 8000)
    held = kv_cache_bytes(SMOL, context_tokens=8032, batch=1, kv_cache="f32")
    assert engine.scheduler.max_num_seqs == 1
    assert held < engine.scheduler.cache_mib * 2**20 < held + 3 * 2**20
    assert long_engine(SMOL, OPENVINO, 16).scheduler.cache_mib == long_context._SMALLEST_POOL_MIB


def test_the_preflight_counts_the_longest_context():
    weights = WeightSettings(bits=8, symmetric=False)
    small = OPENVINO.model_copy(update={"scheduler": OPENVINO.scheduler.model_copy(update={"cache_mib": 64})})
    requests = Config.model_fields["requests"].default
    short = predict(SMOL, weights, small, requests)
    long = predict(SMOL, weights, small, requests, contexts=(1024, 8000))
    assert long.serving_mib > short.serving_mib + 250  # 353 MiB of f32 cache where the pool has 64
    assert long.needed_mib >= long.serving_mib


def test_a_context_beyond_the_models_is_refused():
    check_contexts((8176,), SMOL)
    with pytest.raises(ConfigError, match="use at most 8176"):
        check_contexts((128, 8177), SMOL)


@pytest.mark.parametrize("contexts", [[0], [64, 64]])
def test_lengths_are_positive_and_given_once(contexts):
    with pytest.raises(ValueError, match="each is given once"):
        QuantizeSettings.model_validate(
            {
                "candidates": [{"engine": "openvino", "weights": {"bits": 8}}],
                "long_context_tokens": contexts,
            }
        )
