"""Settings of `keiryo serve`: where it listens and what a client may ask for."""

import difflib
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError

from configs.load import ConfigError
from configs.section import Section

API_KEY_VARIABLE = "KEIRYO_API_KEY"
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ServeLimits(Section):
    """What is refused, and when. Every refusal is an HTTP status with a message that names the limit."""

    body_bytes: int = Field(2**20, ge=1024, description="largest request body; above it 413")
    prompt_tokens: int = Field(2048, ge=1, description="longest prompt; above it 400")
    new_tokens: int = Field(
        1024, ge=1, description="longest completion; above it 400. A chat that names none gets this many"
    )
    queue_requests: int = Field(
        256, ge=0, description="requests that wait beside those the engine decodes; above it 503"
    )
    request_s: float = Field(
        300.0, gt=0, description="seconds from a request's first byte to its last token; above it 504"
    )
    grace_s: float = Field(
        30.0, ge=0, description="seconds that running requests have to finish after SIGTERM"
    )
    retry_after_s: int = Field(2, ge=1, description="seconds after which a refused client should come back")


class ServeSettings(Section):
    """One server. The API key comes from the environment (KEIRYO_API_KEY) or a file, never from the command line."""

    host: str = Field(
        "127.0.0.1", min_length=1, description="address to listen on; loopback unless you say otherwise"
    )
    port: int = Field(8000, ge=0, le=65535, description="0: a free one, which the first line of output names")
    api_key_file: Path | None = Field(None, description="a file whose only line is the API key")
    vllm_command: str | None = Field(
        None,
        min_length=1,
        description="engine: vllm only: its command `vllm`, or the path of it; null: the server of the environment that "
        "`make vllm` made or KEIRYO_VLLM_PYTHON names",
    )
    adapters: dict[str, Digest] = Field(
        {},
        description="adapters that requests may name as their `model`, by digest; by turns on openvino and onnxruntime",
    )
    limits: ServeLimits = ServeLimits()

    @property
    def only_this_machine(self) -> bool:
        """Whether nobody else can connect."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def serve_settings(overrides: Sequence[str]) -> ServeSettings:
    """Settings from `path=value` each, for example `port=8080` or `limits.new_tokens=256`.

    Raises:
        ConfigError: an unknown setting, or a value that breaks a rule.
    """
    raw: dict[str, Any] = {}
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path:
            raise ConfigError(
                f"{override!r}: a setting is written path=value, for example limits.new_tokens=256"
            )
        section, _, name = path.rpartition(".")
        sections: dict[str, type[Section]] = {"": ServeSettings, "limits": ServeLimits}
        known = sections.get(section)
        is_adapter = section == "adapters" and name
        if not is_adapter and (
            known is None or name not in known.model_fields or path in ("limits", "adapters")
        ):
            raise ConfigError(f"{path}: unknown setting; {_hint(path)}")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(
                f"{path} = {text!r}: the value is not YAML: {' '.join(str(error).split())}"
            ) from error
        (raw if not section else raw.setdefault(section, {}))[name] = value
    try:
        return ServeSettings.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{where} = {first['input']!r}: {first['msg']}; change it") from error


def _hint(path: str) -> str:
    names = [
        "adapters.NAME" if name == "adapters" else name
        for name in ServeSettings.model_fields
        if name != "limits"
    ]
    names += [f"limits.{name}" for name in ServeLimits.model_fields]
    near = difflib.get_close_matches(path, names, n=1)
    return f"did you mean {near[0]}?" if near else f"known here: {', '.join(names)}"
