"""A filled-in sheet of blinded pairs, and what it says once the key is laid beside it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tasks.judging.error import DecisionError
from tasks.judging.spot_check import BlindedPair, BlindingKey
from tasks.store.record import Record

Label = Literal["A", "B", "tie"]
LABELS: tuple[Label, ...] = ("A", "B", "tie")


class Preferences(Record):
    """How often people preferred which model's answer, over the pairs of one sheet."""

    source: int
    candidate: int
    ties: int

    @property
    def line(self) -> str:
        """One line for people."""
        pairs = self.source + self.candidate + self.ties
        return f"of {pairs} pairs the source was preferred in {self.source}, the candidate in {self.candidate}, {self.ties} tied"


def read_pairs(text: str) -> tuple[BlindedPair, ...]:
    """The pairs of a `spot_check.jsonl`, as it was logged."""
    return tuple(BlindedPair.model_validate_json(line) for line in text.split("\n") if line)


def read_sheet(file: Path, pairs: Sequence[BlindedPair]) -> tuple[Label, ...]:
    """The labels of a sheet, in the order of the pairs: each line a pair with a field `label`, "A", "B" or "tie".

    Raises:
        DecisionError: it cannot be read, is a sheet of other pairs, or a pair has no label.
    """
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DecisionError(
            f"--sheet {file}: cannot be read ({error}); give the filled-in spot_check.jsonl"
        ) from error
    labels: dict[int, Label] = {}
    for place, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"--sheet {file}, line {place}"
        row = _row(line, where)
        label = row.pop("label")
        pair = next((each for each in pairs if each.model_dump() == row), None)
        if pair is None:
            raise DecisionError(
                f"{where}: no pair of this rollout; fill in its own text/spot_check.jsonl and change nothing else"
            )
        if label not in LABELS:
            raise DecisionError(f"{where}, label: {label!r}; must be one of {', '.join(LABELS)}")
        if pair.number in labels:
            raise DecisionError(f"{where}: pair {pair.number} stands twice; leave one line a pair")
        labels[pair.number] = label
    if missing := sorted({pair.number for pair in pairs} - labels.keys()):
        raise DecisionError(
            f"--sheet {file}: no label for pair {', '.join(map(str, missing))}; label every pair, or say tie"
        )
    return tuple(labels[pair.number] for pair in pairs)


def unblind(labels: Sequence[Label], key: BlindingKey) -> Preferences:
    """Count what was preferred, now that the sides may be known."""
    chosen = [
        None if label == "tie" else label == side
        for label, side in zip(labels, key.candidate_is, strict=True)
    ]
    return Preferences(source=chosen.count(False), candidate=chosen.count(True), ties=chosen.count(None))


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DecisionError(
            f"{where}: not JSON ({error.msg} at column {error.colno}); one object a line"
        ) from error
    if not isinstance(row, dict) or "label" not in row:
        raise DecisionError(f'{where}: has no label; add "label": "A", "B" or "tie" to every line')
    return row
