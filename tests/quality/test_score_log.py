from pathlib import Path

import pytest

from tasks.quality.quality_error import QualityError
from tasks.quality.score_log import ScoreLog, request_key


def test_answers_outlive_the_log_and_a_torn_line_is_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "part.jsonl"
    with ScoreLog(path) as log:
        log.put("a", [1.5, True])
        log.put("b", [2.5, False])
    path.write_bytes(path.read_bytes()[:-7])
    with ScoreLog(path) as log:
        assert log.get("a") == [1.5, True]
        assert log.get("b") is None
        log.put("b", [3.5, False])
    with ScoreLog(path) as log:
        assert log.get("b") == [3.5, False]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "part.jsonl"
    path.write_text('{"key": "a", "answer": 1}\ngarbage\n')
    with pytest.raises(QualityError, match=r"part\.jsonl:2"):
        ScoreLog(path)


def test_keys_tell_contexts_from_targets() -> None:
    assert request_key("score", (1, 2), (3,)) != request_key("score", (1,), (2, 3))
    assert request_key("score", (1,), (2,)) != request_key("diverge", (1,), (2,))
