"""An artifact: a sealed, content-addressed folder that an engine can load, and its manifest."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tasks.store.record import Record

ArtifactKind = Literal["checkpoint", "grid", "openvino", "onnxruntime", "vllm", "adapter"]


class FileEntry(Record):
    """One file of an artifact: POSIX path inside the folder, size and digest."""

    path: str
    size_bytes: int
    sha256: str


class Manifest(Record):
    """What an artifact is made of and where it came from. Its canonical JSON's sha256 is the artifact's address.

    Attributes:
        kind: which engines can load it.
        files: every file, sorted by path.
        parent: address of the artifact it was derived from; None for a source checkpoint.
        recipe: the settings of the step that made it (JSON values).
        seed: the seed of that step; None where nothing was drawn.
        data: digests of the data that was used, by role.
        libraries: versions of the libraries that shaped the bytes, by name.
        hardware: fingerprint of the machine that made it.
    """

    kind: ArtifactKind
    files: tuple[FileEntry, ...]
    parent: str | None = None
    recipe: dict[str, Any] = Field(default_factory=dict)
    seed: int | None = None
    data: dict[str, str] = Field(default_factory=dict)
    libraries: dict[str, str] = Field(default_factory=dict)
    hardware: dict[str, str] = Field(default_factory=dict)


class Artifact(Record):
    """A sealed artifact on this machine."""

    digest: str
    folder: Path
    manifest: Manifest

    @property
    def kind(self) -> ArtifactKind:
        """Which engines can load it."""
        return self.manifest.kind

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(entry.size_bytes for entry in self.manifest.files)
