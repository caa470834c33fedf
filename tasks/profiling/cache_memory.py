"""Bytes of the KV cache."""

from configs.engine import EngineName
from tasks.models.checkpoint import Architecture

BLOCK_TOKENS = 32  # of OpenVINO's paged cache on a CPU
_BITS = {"f32": 32, "bf16": 16, "f16": 16, "u8": 8, "u4": 4}


def kv_factor(heads: int, kv_heads: int) -> float:
    """Size of the cache against one with keys and values for every query head: MHA 1, MQA 1 / heads."""
    return kv_heads / heads


def kv_cache_bytes(architecture: Architecture, *, context_tokens: int, batch: int, kv_cache: str) -> int:
    """Keys and values of `batch` sequences of `context_tokens` tokens.

    Quantized types keep a scale and a zero point, both f32, for each channel of a block of keys and for each
    token's values, and exist in whole blocks of 32 tokens. With heads of 64 that is 18.75 % on top of 8 bits,
    37.5 % on top of 4: the plain "bits / 16 of f16" promises a u4 cache a fourth where it takes a third.
    """
    values = 2 * architecture.head_dim * _BITS[kv_cache]  # bits of one token, head and layer
    heads = architecture.layers * architecture.kv_heads
    if kv_cache not in ("u8", "u4"):
        return batch * context_tokens * heads * values // 8
    blocks = batch * -(-context_tokens // BLOCK_TOKENS)
    return blocks * heads * (BLOCK_TOKENS * values // 8 + 8 * (architecture.head_dim + BLOCK_TOKENS))


def cache_token_bytes(architecture: Architecture, kv_cache: str) -> int:
    """Cache bytes of one token over all layers, its share of the scales included."""
    block = kv_cache_bytes(architecture, context_tokens=BLOCK_TOKENS, batch=1, kv_cache=kv_cache)
    return block // BLOCK_TOKENS


def allocated_cache_bytes(
    architecture: Architecture, engine: EngineName, *, context_tokens: int, batch: int, kv_cache: str
) -> int:
    """The cache as the engine takes it: OpenVINO in whole blocks of any type, the others by the token.

    Quantized types of the others keep a scale a channel for the whole cache: next to nothing.
    """
    if engine != "openvino" and kv_cache in ("u8", "u4"):
        full = kv_cache_bytes(architecture, context_tokens=context_tokens, batch=batch, kv_cache="f32")
        return full * _BITS[kv_cache] // 32
    if engine == "openvino":
        context_tokens = -(-context_tokens // BLOCK_TOKENS) * BLOCK_TOKENS
    return kv_cache_bytes(architecture, context_tokens=context_tokens, batch=batch, kv_cache=kv_cache)
