"""A folder of tasks is known by what is in it, not by where it lies."""

import shutil
from pathlib import Path

import pytest

from tasks.quality.quality_error import QualityError
from tasks.quality.task_folder import folder_digest

YAML = """task: capitals
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
process_docs: !function helpers.prepare
doc_to_text: "{long}"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = tmp_path / "data" / "rows.jsonl"
    rows.parent.mkdir()
    rows.write_text('{"city": "Rome"}\n')
    made = tmp_path / "tasks"
    made.mkdir()
    (made / "capitals.yaml").write_text(YAML.format(rows=rows, long="x" * 300))
    (made / "helpers.py").write_text("raise SystemExit('must not be imported')\n")
    return made


def test_the_same_content_elsewhere_is_the_same(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    assert folder_digest(tmp_path / "copy") == folder_digest(folder)


@pytest.mark.parametrize("changed", ["tasks/capitals.yaml", "tasks/helpers.py", "data/rows.jsonl"])
def test_every_file_that_shapes_a_task_counts(folder: Path, changed: str) -> None:
    before = folder_digest(folder)
    with (folder.parent / changed).open("a") as file:
        file.write("# edited\n")
    assert folder_digest(folder) != before


@pytest.mark.parametrize(
    "named",
    [
        "dataset_kwargs: {{data_files: {{test: {data}/**/*.jsonl}}}}",
        'dataset_kwargs: {{data_files: ["../data/sub/part-?.jsonl"]}}',
        "dataset_kwargs: {{data_dir: {data}}}",
        "dataset_path: ../data",
    ],
)
def test_data_that_is_named_by_a_pattern_or_as_a_folder_counts(tmp_path: Path, named: str) -> None:
    rows = tmp_path / "data" / "sub" / "part-1.jsonl"
    rows.parent.mkdir(parents=True)
    rows.write_text('{"city": "Rome"}\n')
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "capitals.yaml").write_text("task: capitals\n" + named.format(data=tmp_path / "data") + "\n")
    before = folder_digest(tasks)
    assert folder_digest(tasks) == before
    rows.write_text('{"city": "Oslo"}\n')
    changed = folder_digest(tasks)
    assert changed != before
    rows.with_name("part-2.jsonl").write_text('{"city": "Bern"}\n')
    assert folder_digest(tasks) != changed


def test_a_template_that_looks_like_a_pattern_names_no_data(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "capitals.yaml").write_text(
        'task: capitals\ndoc_to_text: "../data/*"\ntarget: ../data\n'
    )
    before = folder_digest(tmp_path / "tasks")
    (tmp_path / "data" / "rows.jsonl").write_text("{}\n")
    assert folder_digest(tmp_path / "tasks") == before


def test_a_folder_without_tasks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QualityError, match=r"quality\.tasks\.pack: .* holds no task YAML"):
        folder_digest(tmp_path)


def test_a_yaml_that_does_not_parse_is_named(folder: Path) -> None:
    (folder / "capitals.yaml").write_text("task: [capitals\n")
    with pytest.raises(QualityError, match=r"capitals\.yaml: not a task YAML"):
        folder_digest(folder)
