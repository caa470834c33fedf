"""An engine configuration in vLLM's words, the same for what is measured here and for the server that `keiryo serve` starts."""

import os
from collections.abc import Mapping
from pathlib import Path

from configs.engine import EngineSettings
from tasks.engines.protocol import EngineUnavailable

_TYPES = {"f32": "float32", "bf16": "bfloat16"}


def engine_arguments(
    folder: Path, settings: EngineSettings, sequence_tokens: int
) -> dict[str, str | int | bool]:
    """The EngineArgs of a checkpoint.

    Args:
        folder: the checkpoint, packed or not.
        settings: the engine configuration.
        sequence_tokens: the longest prompt with its completion.

    Raises:
        EngineUnavailable: a setting has no counterpart.
    """
    if settings.kv_cache != settings.compute:
        raise EngineUnavailable(
            f"kv_cache: {settings.kv_cache} differs from compute: {settings.compute}; vLLM keeps the cache in the type of the "
            f"arithmetic here; use kv_cache: {settings.compute}"
        )
    scheduler = settings.scheduler
    return {
        "model": str(folder),
        "dtype": _TYPES[settings.compute],
        "load_format": "safetensors",
        "max_model_len": sequence_tokens,
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
