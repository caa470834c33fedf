"""Answers of the engine, appended as they come: a killed run loses at most the batch it was in."""

import hashlib
import json
from pathlib import Path
from types import TracebackType
from typing import TextIO

from tasks.quality.quality_error import QualityError


class ScoreLog:
    """A JSONL file of request digest to answer. One file for one candidate: a digest knows no model.

    A line cut off by a kill is dropped and the request asked again. Without a path nothing is kept.
    """

    def __init__(self, path: Path | None) -> None:
        self._answers: dict[str, object] = {}
        self._file: TextIO | None = None
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = 0
        if path.is_file():
            whole = self._read(path)
        # Text mode would decode the torn tail: cut it off first.
        with path.open("ab") as raw:
            raw.truncate(whole)
        self._file = path.open("a", encoding="utf-8")

    def _read(self, path: Path) -> int:
        """Take in every complete line; return how many bytes they are."""
        whole = 0
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
                self._answers[row["key"]] = row["answer"]
            except (ValueError, KeyError, TypeError) as error:
                raise QualityError(
                    f"{path}:{number}: not a scored request; delete the file to score again"
                ) from error
            whole += len(line)
        return whole

    def get(self, key: str) -> object | None:
        """The answer to a request, None where it has none yet."""
        return self._answers.get(key)

    def put(self, key: str, answer: object) -> None:
        """Keep an answer. Handed to the operating system at once: it outlives the process."""
        self._answers[key] = answer
        if self._file is not None:
            self._file.write(json.dumps({"key": key, "answer": answer}) + "\n")
            self._file.flush()

    def __enter__(self) -> "ScoreLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()


def request_key(kind: str, *parts: object) -> str:
    """Digest of a request: what is asked, of which tokens."""
    return hashlib.sha256(json.dumps([kind, *parts]).encode()).hexdigest()[:32]
