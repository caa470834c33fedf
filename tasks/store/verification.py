"""Does a folder hold exactly the files that its manifest says?"""

import hashlib
import os
from pathlib import Path

from pydantic import ValidationError

from tasks.store.artifact import FileEntry, Manifest
from tasks.store.digest import sha256_file
from tasks.store.errors import DamagedArtifact

MANIFEST = "manifest.json"

# What this process hashed in full, (device, inode, size, mtime, ctime) -> sha256. Writing moves the ctime,
# which no program can set, so an unchanged file needs no second reading. A new process trusts nothing.
_hashed: dict[tuple[int, int, int, int, int], str] = {}


def sha256_once(path: Path) -> str:
    """Sha256 of a file, read once in this process while it stays unchanged."""
    stat = path.stat()
    key = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    if key not in _hashed:
        _hashed[key] = sha256_file(path)
    return _hashed[key]


def list_files(folder: Path) -> tuple[str, ...]:
    """POSIX paths of the files below a folder, sorted, without the manifest.

    Raises:
        DamagedArtifact: a link or a special file: its content would lie outside the artifact.
    """
    found = []
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(root, name)
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise DamagedArtifact(f"{path} is a link or a special file; artifacts hold plain files")
        found += [Path(root, name).relative_to(folder).as_posix() for name in files]
    return tuple(sorted(set(found) - {MANIFEST}))


def describe_files(folder: Path) -> tuple[FileEntry, ...]:
    """Size and digest of every file below a folder."""
    return tuple(
        FileEntry(path=path, size_bytes=(folder / path).stat().st_size, sha256=sha256_once(folder / path))
        for path in list_files(folder)
    )


def read_manifest(folder: Path, digest: str) -> Manifest:
    """The manifest of an artifact, checked against its address.

    Raises:
        DamagedArtifact: it is absent, altered or unreadable.
    """
    path = folder / MANIFEST
    if not path.is_file() or path.is_symlink():
        raise DamagedArtifact(f"{path}: expected the manifest, found none")
    text = path.read_bytes()
    if (found := hashlib.sha256(text).hexdigest()) != digest:
        raise DamagedArtifact(f"{path}: expected sha256 {digest}, found {found}")
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        raise DamagedArtifact(f"{path}: {error.error_count()} fields of a manifest differ") from error


def verify(folder: Path, digest: str) -> Manifest:
    """Check an artifact's folder against its address and return its manifest.

    Raises:
        DamagedArtifact: a file is missing, extra or altered; names file, expected and found.
    """
    manifest = read_manifest(folder, digest)
    expected, present = {entry.path for entry in manifest.files}, set(list_files(folder))
    if extra := sorted(present - expected):
        raise DamagedArtifact(f"{folder / extra[0]}: expected no such file, found one")
    for entry in manifest.files:
        path = folder / entry.path
        if entry.path not in present:
            raise DamagedArtifact(f"{path}: expected {entry.size_bytes} bytes, found no file")
        if (size_bytes := path.stat().st_size) != entry.size_bytes:
            raise DamagedArtifact(f"{path}: expected {entry.size_bytes} bytes, found {size_bytes}")
        if (found := sha256_once(path)) != entry.sha256:
            raise DamagedArtifact(f"{path}: expected sha256 {entry.sha256}, found {found}")
    return manifest
