"""A recorded request trace: who asked when, how long the prompt was and how long the answer.

The columns are those of the Azure LLM inference traces (Patel et al., Splitwise, ISCA 2024): TIMESTAMP, ContextTokens and
GeneratedTokens, in any order, others ignored. A timestamp is ISO 8601 or a number of seconds.
"""

import csv
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


class TraceError(ValueError):
    """A trace cannot be used: file, line, column, rule and way out in one line."""


@dataclass(frozen=True)
class TraceRow:
    """One request: seconds since the first row of the file, prompt tokens, new tokens."""

    at_s: float
    context_tokens: int
    generated_tokens: int


def read_trace(path: Path) -> tuple[TraceRow, ...]:
    """Read a trace in order of arrival.

    Raises:
        TraceError: no such file, a column is missing, a value is no number or out of range, or time runs backwards.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file, strict=True))
    except FileNotFoundError:
        raise TraceError(f"{path}: no such file; set load.path to a CSV with {', '.join(COLUMNS)}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path}: cannot be read as CSV: {' '.join(str(error).split())}") from error
    header = lines[0] if lines else []
    if missing := [name for name in COLUMNS if name not in header]:
        raise TraceError(
            f"{path}, line 1: column {missing[0]} is missing; the first line must name {', '.join(COLUMNS)}"
        )
    places = [header.index(name) for name in COLUMNS]
    rows: list[TraceRow] = []
    first_s = 0.0
    for number, cells in enumerate(lines[1:], start=2):
        if not cells:
            continue
        if len(cells) <= max(places):
            raise TraceError(
                f"{path}, line {number}: has {len(cells)} cells, the header {len(header)}; complete it"
            )
        stamp, context, generated = (cells[place].strip() for place in places)
        at_s = _seconds(path, number, stamp)
        first_s = first_s if rows else at_s
        row = TraceRow(
            at_s - first_s,
            _count(path, number, COLUMNS[1], context),
            _count(path, number, COLUMNS[2], generated),
        )
        if rows and row.at_s < rows[-1].at_s:
            raise TraceError(
                f"{path}, line {number}, column TIMESTAMP: {stamp} is earlier than the line before; sort the file by time"
            )
        rows.append(row)
    return tuple(rows)


def _seconds(path: Path, number: int, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        try:
            stamp = datetime.fromisoformat(text)
            seconds = (stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)).timestamp()
        except ValueError:
            seconds = math.nan
    if not math.isfinite(seconds):
        raise TraceError(
            f"{path}, line {number}, column TIMESTAMP: {text!r} is neither a date like 2023-11-16 18:15:46.68 nor "
            "seconds; correct it"
        )
    return seconds


def _count(path: Path, number: int, column: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise TraceError(
            f"{path}, line {number}, column {column}: {text!r} is no count of at least 1 token; correct it or leave the line out"
        )
    return int(text)
