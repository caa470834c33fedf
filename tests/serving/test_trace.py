"""Traces: read as they are, and a bad one says file, line and column in one line."""

from pathlib import Path

import pytest

from tasks.serving.trace import TraceError, read_trace

AZURE = Path(__file__).resolve().parents[3] / "shared" / "data" / "traces" / "azure2023_conv.csv"


def written(folder: Path, text: str) -> Path:
    path = folder / "trace.csv"
    path.write_text(text)
    return path


def test_times_count_from_the_first_row_and_columns_may_stand_in_any_order(tmp_path):
    path = written(
        tmp_path,
        "GeneratedTokens,Model,TIMESTAMP,ContextTokens\n44,a,2023-11-16 18:15:46.6805900,374\n\n"
        "109,b,2023-11-16 18:15:50.9951690,396\n",
    )
    first, second = read_trace(path)
    assert (first.at_s, first.context_tokens, first.generated_tokens) == (0, 374, 44)
    assert second.at_s == pytest.approx(4.314579, abs=1e-6)
    assert (
        read_trace(written(tmp_path, "TIMESTAMP,ContextTokens,GeneratedTokens\n5,1,1\n7.5,2,3"))[1].at_s
        == 2.5
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: column TIMESTAMP is missing"),
        ("TIMESTAMP,ContextTokens\n1,2\n", "line 1: column GeneratedTokens is missing"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n1,2,3\nnoon,2,3\n", "line 3, column TIMESTAMP: 'noon'"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nnan,2,3\n", "line 2, column TIMESTAMP: 'nan'"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n1,2,0\n", "line 2, column GeneratedTokens: '0'"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n1,-2,3\n", "line 2, column ContextTokens: '-2'"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n1,2\n", "line 2: has 2 cells, the header 3"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2,2,2\n1,2,2\n", "line 3, column TIMESTAMP: 1 is earlier"),
    ],
)
def test_a_bad_trace_is_told_in_one_line(tmp_path, text, said):
    path = written(tmp_path, text)
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_the_setting(tmp_path):
    with pytest.raises(TraceError, match=r"no such file; set load\.path"):
        read_trace(tmp_path / "none.csv")


@pytest.mark.skipif(not AZURE.is_file(), reason="the data folder shared/data is not beside the project")
def test_the_azure_trace_is_read_whole():
    rows = read_trace(AZURE)
    assert len(rows) == 19_366
    assert rows[0].context_tokens == 374
    assert 3400 < rows[-1].at_s < 3700
