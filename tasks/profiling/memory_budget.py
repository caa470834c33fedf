"""The memory that serving takes, in closed form: weights, KV cache, activations, the engine itself.

What an engine keeps of the weights is not only the file:

    OpenVINO      maps the file, packs every matrix once more for its kernels (an uncompressed one in the type of the arithmetic) and
                  holds the token table unpacked: in f32 beside compressed weights, else in the type of the arithmetic. The output
                  head is unpacked like it where no int8 kernel takes it as it is stored
    ONNX Runtime  reads the file; a table that is head and embedding in one is packed for the first and kept for the second; int8
                  kernels keep the sum of every group; while the head is packed both its forms are there
    vLLM          reads the mapped file into tensors of its own, and lays packed weights out anew
    transformers  uses the mapped file itself where it has the type of the arithmetic; else it converts, and both are there meanwhile

OpenVINO's pool of cache blocks is a queue: a block that was given back goes to its end, so every request takes blocks that none has
touched before, until the whole pool (`scheduler.cache_mib`) is resident. What is needed at once is much less.
"""

from configs.engine import EngineSettings
from configs.schema import RequestSettings
from configs.weights import WeightSettings
from tasks.models.checkpoint import Architecture
from tasks.profiling.cache_memory import (
    BLOCK_TOKENS,
    allocated_cache_bytes,
    cache_token_bytes,
    kv_cache_bytes,
    kv_factor,
)
from tasks.profiling.weight_memory import plain_bytes, weight_bytes
from tasks.store.record import Record

__all__ = [
    "BLOCK_TOKENS",
    "MemoryBudget",
    "activation_tensor_bytes",
    "cache_token_bytes",
    "kv_cache_bytes",
    "kv_factor",
    "prefill_activation_bytes",
    "relative_error",
    "serving_budget",
    "weight_bytes",
]

_MIB = 2**20
_RUNTIME_BYTES = {
    "transformers": 20 * _MIB,
    "openvino": 38 * _MIB,
    "onnxruntime": 42 * _MIB,
    "vllm": 850 * _MIB,  # its process imports torch and vLLM itself
}
"""Graph, kernels and scratch. No closed form: measured once on a 135 M model; vLLM's of its CPU build, eager."""

_VLLM_REPACKING_BYTES = 350 * _MIB  # kernels' own layouts of packed weights, measured as the runtime was


class MemoryBudget(Record):
    """Predicted memory of serving, bytes.

    Attributes:
        weights_bytes: weights as they lie in the artifact.
        working_weights_bytes: what the engine adds to them: its packed or converted copies.
        kv_cache_bytes: keys and values of the requests in flight at their full length.
        idle_cache_bytes: blocks of a pool that earlier requests of the list have touched and given back.
        activations_bytes: largest set of intermediate values of one step, logits included.
        runtime_bytes: of the engine itself, whatever the model.
        total_bytes: the sum: the predicted peak of one measurement.
        endless_bytes: the peak where serving goes on: the pool is resident as a whole.
    """

    weights_bytes: int
    working_weights_bytes: int
    kv_cache_bytes: int
    idle_cache_bytes: int
    activations_bytes: int
    runtime_bytes: int
    total_bytes: int
    endless_bytes: int


def serving_budget(
    architecture: Architecture, weights: WeightSettings, engine: EngineSettings, requests: RequestSettings
) -> MemoryBudget:
    """Predict the peak while `requests` are served.

    For a table by context and batch, vary `requests.prompt_tokens` and `requests.count`, with
    `scheduler.max_num_seqs` at least the count.

    Raises:
        ValueError: the shape of the model is not covered by the formulas.
    """
    in_flight = min(requests.count, engine.scheduler.max_num_seqs)
    stored = weight_bytes(architecture, weights, engine.engine)
    cache = _cache_bytes(architecture, engine, requests, in_flight)
    idle = max(_touched_cache_bytes(architecture, engine, requests) - cache, 0)
    activations = prefill_activation_bytes(
        architecture,
        step_tokens=_step_tokens(engine, requests, in_flight),
        sequences=in_flight,
        element_bytes=_element_bytes(engine),
    )
    working = _working_weights_bytes(architecture, weights, engine, stored)
    if engine.engine == "onnxruntime":  # packing the head ends before the first request comes
        working += max(_head_bytes(architecture, weights) - cache - activations, 0)
    runtime = _RUNTIME_BYTES[engine.engine]
    total = stored + working + cache + idle + activations + runtime
    pool = engine.scheduler.cache_mib * _MIB if engine.engine in ("openvino", "vllm") else 0
    return MemoryBudget(
        weights_bytes=stored,
        working_weights_bytes=working,
        kv_cache_bytes=cache,
        idle_cache_bytes=idle,
        activations_bytes=activations,
        runtime_bytes=runtime,
        total_bytes=total,
        endless_bytes=total + max(pool - cache - idle, 0),
    )


def activation_tensor_bytes(batch: int, tokens: int, width: int, bits: int) -> int:
    """One intermediate tensor of shape (batch, tokens, width)."""
    return plain_bytes(batch * tokens * width, bits)


def prefill_activation_bytes(
    architecture: Architecture, *, step_tokens: int, sequences: int, element_bytes: int
) -> int:
    """Largest set of values alive at once in one forward pass over `step_tokens` tokens.

    A layer is at its widest inside the MLP: residual and normed input, gate, up and their product. Attention
    scores are never whole in memory (fused kernels). The logits exist for the last token of each sequence, in
    f32, twice: as the model returns them and as the sampler reads them.
    """
    layer = step_tokens * (2 * architecture.hidden + 3 * architecture.intermediate) * element_bytes
    logits = 2 * sequences * architecture.vocabulary * 4
    return layer + logits


def relative_error(predicted: float, measured: float) -> float:
    """(predicted - measured) / measured: above 0 when the prediction was too high.

    Raises:
        ValueError: nothing was measured.
    """
    if measured <= 0:
        raise ValueError(f"measured is {measured}; a relative error needs a measurement above 0")
    return predicted / measured - 1


def _element_bytes(engine: EngineSettings) -> int:
    return 2 if engine.compute == "bf16" else 4


def _working_weights_bytes(
    architecture: Architecture, weights: WeightSettings, engine: EngineSettings, stored: int
) -> int:
    computed = architecture.parameters * _element_bytes(engine)
    table = architecture.vocabulary * architecture.hidden
    match engine.engine:
        case "openvino" if weights.bits in (16, 32):
            return computed + 2 * table * _element_bytes(engine)
        case "openvino":
            return stored + (1 + _unpacks_head(architecture, weights, engine)) * table * 4
        case "onnxruntime":
            shared = _head_bytes(architecture, weights) if architecture.tied_embeddings else 0
            return shared + _group_sums_bytes(architecture, weights)
        case "vllm" if weights.bits in (4, 8):
            return stored + _VLLM_REPACKING_BYTES
        case "vllm":
            return computed
        case _:
            return 0 if computed == stored else computed


def _unpacks_head(architecture: Architecture, weights: WeightSettings, engine: EngineSettings) -> bool:
    """OpenVINO multiplies by an int8 head with zero points only after the activations were rounded, or in bf16.

    A group wider than the head's inputs rounds none of them.
    """
    is_rounded = 0 < engine.activation_group <= architecture.hidden
    return not weights.symmetric and engine.compute == "f32" and not is_rounded


def _head_bytes(architecture: Architecture, weights: WeightSettings) -> int:
    """The output head as ONNX Runtime packs it, scales left out."""
    bits = weights.embedding_bits if weights.bits in (4, 8) else weights.bits
    return plain_bytes(architecture.vocabulary * architecture.hidden, bits)


def _group_sums_bytes(architecture: Architecture, weights: WeightSettings) -> int:
    """One f32 a group of rounded weights, for the zero points of rounded activations."""
    if weights.bits not in (4, 8) or weights.group_size == -1:
        return 0
    return 4 * (architecture.parameters // weights.group_size)


def _cache_bytes(
    architecture: Architecture, engine: EngineSettings, requests: RequestSettings, in_flight: int
) -> int:
    """The list in flight or the single stream, whichever needs more, within a paged scheduler's limit."""
    if not engine.use_kv_cache:
        return 0
    lists, stream = (
        allocated_cache_bytes(
            architecture,
            engine.engine,
            context_tokens=requests.prompt_tokens + new_tokens,
            batch=batch,
            kv_cache=engine.kv_cache,
        )
        for batch, new_tokens in ((in_flight, requests.max_new_tokens), (1, requests.one_stream_new_tokens))
    )
    needed = max(lists, stream)
    return min(needed, engine.scheduler.cache_mib * _MIB) if engine.engine in ("openvino", "vllm") else needed


def _touched_cache_bytes(
    architecture: Architecture, engine: EngineSettings, requests: RequestSettings
) -> int:
    """Blocks that all requests of a measurement take one after another, within the pool; 0 without a pool."""
    if engine.engine != "openvino":
        return 0
    lengths = range(requests.min_new_tokens, requests.max_new_tokens + 1)
    blocks = [_blocks(requests.prompt_tokens + new_tokens) for new_tokens in lengths]
    stream = _blocks(requests.prompt_tokens + requests.one_stream_new_tokens)
    taken = requests.repeats * (requests.count * sum(blocks) / len(blocks) + stream)
    block = kv_cache_bytes(architecture, context_tokens=BLOCK_TOKENS, batch=1, kv_cache=engine.kv_cache)
    return min(round(taken * block), engine.scheduler.cache_mib * _MIB)


def _blocks(tokens: int) -> int:
    """Cache blocks of a request; its last token is never fed."""
    return -(-(tokens - 1) // BLOCK_TOKENS)


def _step_tokens(engine: EngineSettings, requests: RequestSettings, in_flight: int) -> int:
    """Tokens of the largest forward pass."""
    tokens = (
        requests.prompt_tokens if engine.use_kv_cache else requests.prompt_tokens + requests.max_new_tokens
    )
    if engine.engine in ("openvino", "vllm"):
        return min(in_flight * tokens, engine.scheduler.max_num_batched_tokens)
    return in_flight * tokens
