"""How many requests the KV cache holds side by side: from the memory budget, to be shown beside what was measured.

A paged cache holds a request's blocks as it grows. Of many requests under way each is at another moment of its life, so a request takes
the mean of its blocks over its steps; one with a long completion stays longer and counts more.
"""

from collections.abc import Sequence

from configs.engine import EngineSettings
from tasks.engines.protocol import GenerationRequest
from tasks.models.checkpoint import Architecture
from tasks.profiling.cache_memory import BLOCK_TOKENS, kv_cache_bytes

_MIB = 2**20


def predicted_capacity(
    architecture: Architecture, engine: EngineSettings, requests: Sequence[GenerationRequest]
) -> float:
    """Requests that decode together, on average: what the cache holds, or `max_num_seqs` where that is less.

    Raises:
        ValueError: there are no requests.
    """
    if not requests:
        raise ValueError("there are no requests; raise load.requests")
    block = kv_cache_bytes(architecture, context_tokens=BLOCK_TOKENS, batch=1, kv_cache=engine.kv_cache)
    blocks = engine.scheduler.cache_mib * _MIB // block
    steps = [(len(r.prompt), made) for r in requests for made in range(1, r.max_new_tokens + 1)]
    mean = sum(-(-(prompt + made) // BLOCK_TOKENS) for prompt, made in steps) / len(steps)
    return min(float(engine.scheduler.max_num_seqs), blocks / mean)
