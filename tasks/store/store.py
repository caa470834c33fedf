"""The store: sealed artifacts by content, and the memory of results: nothing is lost, nothing done twice.

    artifacts/<digest>/    sealed folders with their manifest.json; never changed
    results/<key>.json     records, with their checksum
    files/<key>/<key>      large derived files
    locks/                 one file a key: processes that share the store wait for each other
    scratch/               everything is written here first (scratch.py)
    quarantine/            what was found damaged

Everything comes to its place by one rename after fsync: a reader sees it whole or not at all.
"""

import errno
import json
import logging
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from tasks.store.artifact import Artifact, ArtifactKind, Manifest
from tasks.store.digest import canonical_json, digest_of
from tasks.store.errors import DamagedArtifact, MissingArtifact, StoreError
from tasks.store.record import Record
from tasks.store.scratch import locked, scratch_folder, sweep, sync
from tasks.store.verification import MANIFEST, describe_files, list_files, verify

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Record)
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def store_home() -> Path:
    """`$KEIRYO_HOME`, or `.keiryo` in the working folder."""
    return Path(os.environ.get("KEIRYO_HOME") or ".keiryo").absolute()


class ArtifactRef(Record):
    """What is remembered of an artifact under a key: its address."""

    artifact: str


class Store:
    """One store on this machine. Processes and threads may share it."""

    def __init__(self, home: Path) -> None:
        """Open or create the store under `home`, and remove what dead processes left half-written."""
        self.home = home.absolute()
        for name in ("artifacts", "results", "files", "locks", "scratch", "quarantine"):
            (self.home / name).mkdir(parents=True, exist_ok=True)
        if swept := sweep(self.home / "scratch"):
            logger.info("removed %d scratch folder(s) of processes that died", swept)

    def seal(
        self,
        build: Callable[[Path], None],
        *,
        kind: ArtifactKind,
        parent: str | None = None,
        recipe: Mapping[str, Any] = {},
        seed: int | None = None,
        data: Mapping[str, str] = {},
        libraries: Mapping[str, str] = {},
        hardware: Mapping[str, str] = {},
    ) -> Artifact:
        """Build a folder aside and move it to the address of its manifest. Equal content is stored once.

        Args:
            build: writes the artifact's files into the empty folder it is given.
            kind: which engines can load it.
            parent: address of the artifact it is derived from.
            recipe: settings of the step, JSON values.
            seed: seed of the step.
            data: digests of the data used, by role.
            libraries: versions that shaped the bytes.
            hardware: fingerprint of the machine.

        Raises:
            StoreError: the disk is full, or `build` wrote nothing or a link.
        """
        with self._disk("seal an artifact"), self.scratch() as folder:
            build(folder)
            if (folder / MANIFEST).exists():
                raise StoreError(f"an artifact's own file must not be named {MANIFEST}; choose another name")
            try:
                _make_read_only(folder)
                files = describe_files(folder)
            except DamagedArtifact as error:
                raise StoreError(f"cannot seal: {error}") from error
            if not files:
                raise StoreError(f"cannot seal an empty {kind} artifact: its build wrote no file")
            manifest = Manifest(
                kind=kind,
                files=files,
                parent=parent,
                recipe=dict(recipe),
                seed=seed,
                data=dict(data),
                libraries=dict(libraries),
                hardware=dict(hardware),
            )
            digest, text = digest_of(manifest), canonical_json(manifest)
            (folder / MANIFEST).write_text(text, encoding="utf-8")
            _make_durable(folder)
            target = self.home / "artifacts" / digest
            while not _move(folder, target):
                try:  # another process sealed the same content first; it must be sound to stand for ours
                    return self.open(digest)
                except (DamagedArtifact, MissingArtifact) as error:
                    logger.warning("replacing it by the one just built: %s", error)
        return Artifact(digest=digest, folder=target, manifest=Manifest.model_validate_json(text))

    def open(self, digest: str) -> Artifact:
        """Verify an artifact and return it. In one process an unchanged file is hashed once.

        Raises:
            MissingArtifact: the store holds none of this digest.
            DamagedArtifact: it is not what its manifest says; it is now in quarantine and never served.
        """
        if not _DIGEST.fullmatch(digest):
            raise StoreError(f"{digest!r} is no artifact digest; expected 64 hexadecimal digits")
        folder = self.home / "artifacts" / digest
        try:
            inode = folder.stat().st_ino
            return Artifact(digest=digest, folder=folder, manifest=verify(folder, digest))
        except FileNotFoundError as error:
            raise MissingArtifact(
                f"no artifact {digest} in {self.home}; run the step that makes it again"
            ) from error
        except DamagedArtifact as error:
            with self.lock(f"artifact-{digest}"):
                # Another process may have rebuilt it meanwhile: the rebuilt folder is another inode.
                if folder.is_dir() and folder.stat().st_ino == inode:
                    self._quarantine(folder)
            raise DamagedArtifact(
                f"{error}; the artifact was moved to {self.home / 'quarantine'}; run again to rebuild it"
            ) from error

    def once_artifact(self, key: str, build: Callable[[], Artifact]) -> tuple[Artifact, bool]:
        """The artifact remembered under a key, verified; built (and remembered) when it is absent or damaged.

        Returns:
            The artifact, and whether it was found.
        """
        with self.lock(key):
            if (known := self.recall(key, ArtifactRef)) is not None:
                try:
                    return self.open(known.artifact), True
                except (DamagedArtifact, MissingArtifact) as error:
                    logger.warning("building it again: %s", error)
            artifact = build()
            self.remember(key, ArtifactRef(artifact=artifact.digest))
            return artifact, False

    def recall(self, key: str, record_type: type[R]) -> R | None:
        """The record remembered under a key; None when there is none, or a damaged one (quarantined)."""
        path = self._result(key)
        try:
            stored = json.loads(path.read_bytes())
            if stored["sha256"] != digest_of(stored["record"]):
                raise ValueError("its checksum differs")
            return record_type.model_validate_json(json.dumps(stored["record"]))
        except FileNotFoundError:
            return None
        except (
            ValueError,
            KeyError,
            TypeError,
        ) as error:  # pydantic's and json's errors are ValueErrors
            reason = f"not a {record_type.__name__}" if isinstance(error, ValidationError) else str(error)
            logger.warning("%s is damaged (%s); moved to quarantine, it will be computed again", path, reason)
            self._quarantine(path)
            return None

    def remember(self, key: str, record: Record) -> None:
        """Keep a record under a key, replacing what was there.

        Raises:
            StoreError: the disk is full; what was remembered before still is.
        """
        path = self._result(key)
        value = record.model_dump(mode="json")
        with self._disk(f"remember {key}"), self.scratch() as folder:
            (folder / path.name).write_text(
                canonical_json({"record": value, "sha256": digest_of(value)}), encoding="utf-8"
            )
            sync(folder / path.name)
            (folder / path.name).replace(path)
            sync(path.parent)

    def once(self, key: str, record_type: type[R], compute: Callable[[], R]) -> tuple[R, bool]:
        """The record remembered under a key; computed and remembered when absent, by one process at a time.

        Returns:
            The record, and whether it was found.
        """
        with self.lock(key):
            if (known := self.recall(key, record_type)) is not None:
                return known, True
            record = compute()
            self.remember(key, record)
            return record, False

    def once_file(self, key: str, write: Callable[[Path], None]) -> Path:
        """A large derived file, kept under its key (which is also its name); checked by size only.

        Args:
            key: give it the suffix that the writer insists on ("logits-<digest>.npy").
            write: writes the file at the path it is given.

        Raises:
            StoreError: the disk is full, or `write` did not write that path.
        """
        self._result(key)  # the same rule for keys
        target = self.home / "files" / key
        with self.lock(key):
            if (path := target / key).is_file():
                size_file = target / "size_bytes"
                if size_file.is_file() and size_file.read_text() == str(path.stat().st_size):
                    return path
            if target.exists():
                logger.warning(
                    "%s is damaged (size differs); moved to quarantine, it will be made again", path
                )
                self._quarantine(target)
            with self._disk(f"write {key}"), self.scratch() as folder:
                write(folder / key)
                if (written := [path.name for path in folder.iterdir()]) != [key]:
                    raise StoreError(f"once_file: expected one file {key}, found {sorted(written)}")
                (folder / "size_bytes").write_text(str((folder / key).stat().st_size))
                _make_read_only(folder)
                _make_durable(folder)
                _move(folder, target)
        return path

    def scratch(self) -> AbstractContextManager[Path]:
        """A folder on the store's disk for intermediate files; removed at the end, or after a kill."""
        return scratch_folder(self.home / "scratch")

    def lock(self, key: str, *, shared: bool = False) -> AbstractContextManager[None]:
        """Exclude other processes and threads that hold the same key; a shared holder, only those that do not share. Not reentrant."""
        self._result(key)
        return locked(self.home / "locks" / f"{key}.lock", shared=shared)

    def _result(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise StoreError(f"{key!r} is no key; use letters, digits, '.', '_' and '-', at most 200")
        return self.home / "results" / f"{key}.json"

    def _quarantine(self, path: Path) -> None:
        try:
            path.rename(self.home / "quarantine" / f"{path.name}-{uuid.uuid4().hex[:8]}")
        except FileNotFoundError:
            return  # another process was first

    @contextmanager
    def _disk(self, doing: str) -> Iterator[None]:
        """Turn a full disk into a StoreError."""
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise StoreError(
                f"cannot {doing}: no space left under {self.home} ({error.strerror}); "
                "nothing half-written was kept; free some disk or set KEIRYO_HOME to a larger one"
            ) from error


def _make_read_only(folder: Path) -> None:
    for name in list_files(folder):
        (folder / name).chmod(0o444)


def _make_durable(folder: Path) -> None:
    """Force a folder, with all that is below, to the disk."""
    for root, _, files in os.walk(folder, topdown=False):
        for name in files:
            sync(Path(root, name))
        sync(Path(root))


def _move(folder: Path, target: Path) -> bool:
    """Rename a folder to its place; False when something stands there already."""
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    sync(target.parent)
    return True
