"""An engine configuration in vLLM's words, the same for what is measured here and for the server that `keiryo serve` starts."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from configs.engine import EngineSettings
from tasks.engines.cache_shape import read_cache_shape
from tasks.engines.protocol import EngineUnavailable

_BLOCK_TOKENS = 128  # of vLLM's cache on the CPU, the largest there is
_TYPES = {"f32": "float32", "bf16": "bfloat16"}


def engine_arguments(
    folder: Path, settings: EngineSettings, sequence_tokens: int | None = None
) -> dict[str, str | int | bool]:
    """The EngineArgs of a checkpoint.

    Args:
        folder: the checkpoint, packed or not.
        settings: the engine configuration.
        sequence_tokens: the longest prompt with its completion; the model's context and the cache may allow less. None: as they allow.

    Raises:
        EngineUnavailable: a setting has no counterpart.
    """
    if settings.kv_cache != settings.compute:
        raise EngineUnavailable(
            f"kv_cache: {settings.kv_cache} differs from compute: {settings.compute}; vLLM keeps the cache in the type of the "
            f"arithmetic here; use kv_cache: {settings.compute}"
        )
    scheduler, longest = settings.scheduler, _longest_sequence(folder, settings)
    return {
        "model": str(folder),
        "dtype": _TYPES[settings.compute],
        "load_format": "safetensors",
        "max_model_len": longest if sequence_tokens is None else min(longest, sequence_tokens),
        "max_num_seqs": scheduler.max_num_seqs,
        "max_num_batched_tokens": max(scheduler.max_num_batched_tokens, scheduler.max_num_seqs),
        "kv_cache_memory_bytes": scheduler.cache_mib * 2**20,
        "enable_prefix_caching": scheduler.prefix_caching,
        "enable_chunked_prefill": scheduler.split_prefill,
        "enforce_eager": settings.eager,
    }


def command_line(arguments: Mapping[str, str | int | bool]) -> list[str]:
    """The same as flags of vLLM's server: --max-model-len 2048 --no-enable-prefix-caching."""
    flags: list[str] = []
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if value is True:
            flags.append(f"--{flag}")
        elif value is False:
            flags.append(f"--no-{flag}")
        else:
            flags += [f"--{flag}", str(value)]
    return flags


def process_environment(threads: int) -> dict[str, str]:
    """What a process of vLLM is told: on how many threads to compute and each where to stay, to ask no hub, and to report to nobody."""
    cpus = sorted(os.sched_getaffinity(0))[:threads]
    return {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cpus)),
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }


def _longest_sequence(folder: Path, settings: EngineSettings) -> int:
    """Tokens of one sequence that both the model's context and `scheduler.cache_mib` hold."""
    layers, kv_heads, head_dim = read_cache_shape(folder)
    block_bytes = 2 * layers * kv_heads * head_dim * _BLOCK_TOKENS * (4 if settings.compute == "f32" else 2)
    blocks = settings.scheduler.cache_mib * 2**20 // block_bytes - 1  # one stays empty
    held = max(blocks, 1) * _BLOCK_TOKENS
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return int(min(config.get("max_position_embeddings", held), held))
