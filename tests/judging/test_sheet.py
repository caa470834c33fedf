"""Filled-in sheets: what is read, what is refused, and what the key makes of the labels."""

import json
from pathlib import Path

import pytest

from tasks.judging.error import DecisionError
from tasks.judging.sheet import Preferences, read_pairs, read_sheet, unblind
from tasks.judging.spot_check import BlindedPair, BlindingKey

PAIRS = tuple(BlindedPair(number=n, prompt=f"Q\u2028{n}", answer_a="x", answer_b="y\n") for n in (1, 2, 3))
ROWS = [pair.model_dump() | {"label": label} for pair, label in zip(PAIRS, ("A", "B", "tie"), strict=True)]


def sheet(tmp_path: Path, rows: list[dict[str, object]], text: str = "") -> Path:
    path = tmp_path / "sheet.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows) + text, encoding="utf-8")
    return path


def test_labels_come_in_the_order_of_the_pairs_and_the_key_counts_them(tmp_path: Path) -> None:
    logged = "".join(f"{pair.model_dump_json()}\n" for pair in PAIRS)
    assert read_pairs(logged) == PAIRS
    labels = read_sheet(sheet(tmp_path, ROWS[::-1], "\n"), PAIRS)
    assert labels == ("A", "B", "tie")
    for sides, found in (
        (("A", "B", "A"), (0, 2, 1)),
        (("B", "B", "A"), (1, 1, 1)),
        (("B", "A", "B"), (2, 0, 1)),
    ):
        key = BlindingKey(prompt_ids=("a", "b", "c"), candidate_is=sides, seed=0)
        preferences = unblind(labels, key)
        assert preferences == Preferences(source=found[0], candidate=found[1], ties=found[2])
        assert f"source was preferred in {found[0]}" in preferences.line


@pytest.mark.parametrize(
    ("rows", "text", "said"),
    [
        (ROWS[:2], "", "no label for pair 3"),
        ([*ROWS, ROWS[0]], "", "line 4: pair 1 stands twice"),
        ([{**ROWS[0], "label": "a"}, *ROWS[1:]], "", "line 1, label: 'a'; must be one of A, B, tie"),
        ([{**ROWS[0], "answer_a": "better"}, *ROWS[1:]], "", "line 1: no pair of this rollout"),
        ([{**ROWS[0], "number": [1]}, *ROWS[1:]], "", "line 1: no pair of this rollout"),
        ([PAIRS[0].model_dump(), *ROWS[1:]], "", "line 1: has no label"),
        (ROWS, "{", "line 4: not JSON"),
        (ROWS, "[]", "line 4: has no label"),
    ],
)
def test_a_sheet_that_is_not_of_these_pairs_or_not_complete_is_refused(
    tmp_path: Path, rows: list[dict[str, object]], text: str, said: str
) -> None:
    with pytest.raises(DecisionError, match=r"^--sheet ") as caught:
        read_sheet(sheet(tmp_path, rows, text), PAIRS)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
