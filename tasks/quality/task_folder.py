"""A folder of lm-eval task YAMLs, by content: an edited task or data file is another task."""

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tasks.quality.quality_error import QualityError
from tasks.store.digest import digest_of, sha256_file

DATA_SETTINGS = ("dataset_path", "dataset_kwargs")
"""Settings of a task YAML in which a pattern or a folder names data; elsewhere such a text is a prompt."""


class _TaskLoader(yaml.SafeLoader):
    """Reads `!function module.name` as its text; nothing is imported."""


_TaskLoader.add_multi_constructor("!", lambda _loader, tag, node: f"!{tag} {node.value}")


def folder_digest(folder: Path) -> str:
    """Digest of every file below a folder of tasks, and of the files that its YAMLs name: data, `include`.

    Data may be named by a pattern or as a folder (`dataset_path`, `dataset_kwargs`): every file that is there now counts.

    Raises:
        QualityError: the folder is not there, holds no YAML, or one cannot be parsed.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    definitions = [path for path in files if path.suffix in (".yaml", ".yml")]
    if not definitions:
        raise QualityError(
            f"quality.tasks.pack: {folder} holds no task YAML; give the folder that lm-eval's --include_path takes"
        )
    data = {path.resolve() for definition in definitions for path in _data_files(definition)}
    return digest_of(
        [
            {path.relative_to(folder).as_posix(): sha256_file(path) for path in files},
            [sha256_file(path) for path in sorted(data)],
        ]
    )


def _data_files(definition: Path) -> Iterator[Path]:
    try:
        settings = yaml.load(definition.read_text(encoding="utf-8"), _TaskLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise QualityError(f"{definition}: not a task YAML: {' '.join(str(error).split())}") from error
    for text in _strings(settings):
        # os.path knows no error: a template may be longer than any file name
        yield from (Path(path) for path in (text, definition.parent / text) if os.path.isfile(path))  # noqa: PTH113
    data = (
        {key: settings[key] for key in DATA_SETTINGS if key in settings} if isinstance(settings, dict) else {}
    )
    for text in _strings(data):
        yield from _below(text, definition.parent)


def _below(text: str, folder: Path) -> Iterator[Path]:
    """Files of a folder or a pattern, as data sets are named: from the working folder or from that of the YAML."""
    for base in (Path.cwd(), folder):
        for found in glob.glob(str(base / text), recursive=True):  # noqa: PTH207 (Path.glob takes no absolute pattern)
            path = Path(found)
            files = path.rglob("*") if path.is_dir() else (path,)
            yield from (file.resolve() for file in files if file.is_file())


def _strings(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            for each in value.values():
                yield from _strings(each)
        case list():
            for each in value:
                yield from _strings(each)
