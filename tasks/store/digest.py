"""Digests of values, files and sources: addresses of artifacts and keys of results are made of them."""

import hashlib
import json
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel

PROJECT_ROOT = Path(__file__).resolve().parents[2]


def _jsonable(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"{type(value).__name__} has no canonical JSON; pass JSON values, records or paths")


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, UTF-8, shortest float that reads back equal.

    Raises:
        TypeError: a part of the value is not JSON, a pydantic model or a path.
        ValueError: NaN or infinity.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_jsonable
    )


def digest_of(value: Any) -> str:
    """Sha256 (hex) of the canonical JSON of a value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Sha256 (hex) of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def code_digest(*paths: str | Path) -> str:
    """Digest of Python sources without importing them: the code version in the key of a result.

    Args:
        paths: `.py` files or folders (every `.py` below), relative to the project's root: "tasks/quality".

    Raises:
        FileNotFoundError: a path names no source; a key must not silently forget a part.

    One process keeps its first answer: a file that is edited meanwhile is not what the process has imported.
    """
    sources: dict[str, str] = {}
    for path in paths:
        full = PROJECT_ROOT / path
        files = [full] if full.suffix == ".py" else sorted(full.rglob("*.py"))
        if not files or not all(file.is_file() for file in files):
            raise FileNotFoundError(f"code_digest: {path} names no Python source under the project's root")
        sources |= {file.relative_to(PROJECT_ROOT).as_posix(): sha256_file(file) for file in files}
    return digest_of(sources)


def library_versions(*names: str) -> dict[str, str]:
    """Installed versions of distributions, by name; "not installed" where there is none."""
    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions
