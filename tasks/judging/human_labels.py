"""Pairs that people have labelled, and how well the judge agrees with them: Cohen's kappa.

Cohen (1960), Educational and Psychological Measurement 20, 37-46; the error of the estimate is that of
Fleiss, Cohen and Everitt (1969), by statsmodels.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Literal

import numpy as np

from tasks.data.lines import read_lines
from tasks.judging.both_orders import Outcome
from tasks.judging.error import LabelError
from tasks.judging.judge import Comparison
from tasks.store.record import Record

MIN_LABELS = 30
"""Labelled pairs below which kappa says nothing: a short run of agreement has a standard error of 0."""

CATEGORIES = ("A", "B", "tie")
_FIELDS = ("prompt", "answer_a", "answer_b", "label")


class LabelledPair(Record):
    """One pair and what people said of it."""

    prompt: str
    answer_a: str
    answer_b: str
    label: Literal["A", "B", "tie"]

    def comparison(self, rubric: str) -> Comparison:
        """The question to the judge."""
        return Comparison(rubric, self.prompt, self.answer_a, self.answer_b)


class Agreement(Record):
    """Cohen's kappa with its one-sided limit; both None where it is undefined (one rater used one category only)."""

    kappa: float | None
    low: float | None
    pairs: int


def read_labels(file: Path) -> tuple[LabelledPair, ...]:
    """Read a JSONL file with prompt, answer_a, answer_b and label ("A", "B" or "tie") a line.

    Raises:
        LabelError: it cannot be read, a line breaks the rule, or there are fewer than 30 pairs.
    """
    lines = read_lines(file, "judge.calibration.human_labels", "give a JSONL file", LabelError)
    pairs = tuple(
        _pair(line, f"judge.calibration.human_labels: {file}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    )
    if len(pairs) < MIN_LABELS:
        raise LabelError(
            f"judge.calibration.human_labels: {file} has {len(pairs)} pairs; kappa needs {MIN_LABELS}: "
            "label more, or leave the file out"
        )
    return pairs


def agreement(labels: Sequence[str], outcomes: Sequence[Outcome], alpha: float) -> Agreement:
    """Kappa of the people's labels with the judge's; what is inconsistent or unparsable counts as a tie."""
    said = {"first": "A", "second": "B"}
    table = np.zeros((3, 3), dtype=np.int64)
    for label, found in zip(labels, outcomes, strict=True):
        table[CATEGORIES.index(label), CATEGORIES.index(said.get(found, "tie"))] += 1
    expected = float(table.sum(0) @ table.sum(1)) / table.sum() ** 2
    if math.isclose(expected, 1.0):
        return Agreement(kappa=None, low=None, pairs=len(labels))
    from statsmodels.stats.inter_rater import cohens_kappa

    result = cohens_kappa(table)
    low = float(result.kappa) - NormalDist().inv_cdf(1 - alpha) * float(result.std_kappa)
    return Agreement(kappa=float(result.kappa), low=low, pairs=len(labels))


def _pair(line: str, where: str) -> LabelledPair:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise LabelError(
            f"{where}: not JSON ({error.msg} at column {error.colno}); one object a line"
        ) from error
    if not isinstance(row, dict) or set(row) != set(_FIELDS):
        raise LabelError(f"{where}: a row is an object with {', '.join(_FIELDS)} and nothing else")
    for field in _FIELDS[:3]:
        if not isinstance(row[field], str):
            raise LabelError(f"{where}, {field}: must be a text, got {row[field]!r}")
    if row["label"] not in CATEGORIES:
        raise LabelError(f"{where}, label: {row['label']!r}; must be one of {', '.join(CATEGORIES)}")
    return LabelledPair.model_validate(row)
