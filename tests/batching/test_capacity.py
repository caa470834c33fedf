"""Capacity from the memory budget, against a cache that is filled block by block."""

import pytest

from configs.engine import EngineSettings, SchedulerSettings
from tasks.batching.capacity import predicted_capacity
from tasks.engines.protocol import GenerationRequest
from tasks.models.checkpoint import Architecture
from tasks.profiling.cache_memory import kv_cache_bytes

SMOL = Architecture(
    model_type="llama", layers=30, hidden=576, intermediate=1536, heads=9, kv_heads=3, head_dim=64,
    vocabulary=49152, tied_embeddings=True, parameters=134_515_008, context_tokens=8192, dtype="F32",
)  # fmt: skip


def test_what_a_filled_cache_holds():
    """One request comes a step and each stays as many steps as it has new tokens: a full house of 640, none at the same moment."""
    block = kv_cache_bytes(SMOL, context_tokens=32, batch=1, kv_cache="u8")
    taken = sum(-(-(100 + made) // 32) for made in range(1, 641)) * block
    mib = -(-taken // 2**20)
    engine = EngineSettings(
        engine="openvino", kv_cache="u8", scheduler=SchedulerSettings(max_num_seqs=10_000, cache_mib=mib)
    )
    assert predicted_capacity(SMOL, engine, [GenerationRequest((1,) * 100, 640)] * 5) == pytest.approx(
        640, rel=0.005
    )


def test_never_more_than_the_slots():
    engine = EngineSettings(engine="openvino", scheduler=SchedulerSettings(max_num_seqs=3))
    assert predicted_capacity(SMOL, engine, [GenerationRequest((1,), 1)]) == 3
    with pytest.raises(ValueError, match=r"load\.requests"):
        predicted_capacity(SMOL, engine, [])
