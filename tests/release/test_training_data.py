"""`adapt.data` is read and checked against the gate's items before anything runs."""

import json
from pathlib import Path

import pytest
from tiny_llama import tiny_llama

from configs.load import load_config
from configs.schema import Config
from tasks.data.training_rows import DataError
from tasks.release.gate_tasks import task_set
from tasks.release.preparation import make_workspace
from tasks.release.training_data import search_texts, training_leakage

CONFIG = """
name: leakage
model: {{name: tiny, source: {{kind: folder, path: {model}}}}}
quality:
  margins: {{perplexity_fraction: 0.05, kl_nats: 0.05, accuracy: 0.2}}
  tasks: {{names: [keiryo_minimal_pairs], items: 200}}
  text: {{section_characters: 300, search_sections: 8}}
quantize: {{candidates: [{{engine: openvino, weights: {{bits: 8}}}}]}}
adapt: {{data: {data}, allow_leakage: {allowed}}}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny")).folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEIRYO_HOME", str(tmp_path / "store"))


def config(folder: Path, model: Path, data: object, allowed: bool = False) -> Config:
    recipe = folder / "recipe.yaml"
    recipe.write_text(CONFIG.format(model=model, data=data, allowed=str(allowed).lower()))
    return load_config(recipe)


def test_rows_that_repeat_the_gates_text_or_items_are_refused_unless_allowed(
    model: Path, tmp_path: Path
) -> None:
    clean = make_workspace(config(tmp_path, model, "text"))
    sentence = task_set(clean).texts("keiryo_minimal_pairs", 200)[0]
    rows = [
        {"text": "Nothing of this stands in any gate, as far as I know."},
        {
            "messages": [
                {"role": "user", "content": "Read this."},
                {"role": "assistant", "content": sentence.upper()},
            ]
        },
        {"text": "Here is some text. " + clean.splits.gate[0].text + " And here it ends."},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    with pytest.raises(
        DataError, match=r"rows.jsonl: 2 row\(s\) repeat items .*; row 2 repeats .*allow_leakage: true"
    ):
        make_workspace(config(tmp_path, model, file))
    assert training_leakage(make_workspace(config(tmp_path, model, file, allowed=True))).rows == 2


def test_a_bad_row_is_told_before_anything_runs(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "fine"}\n{"messages": [{"role": "bot", "content": "a"}]}\n')
    with pytest.raises(DataError, match=r"rows.jsonl, line 2, messages\[0\].role: 'bot'"):
        make_workspace(config(tmp_path, model, file))


def test_early_stopping_draws_from_all_of_the_search_side_and_from_nothing_else(
    model: Path, tmp_path: Path
) -> None:
    workspace = make_workspace(config(tmp_path, model, "text"))
    splits, looked_at = workspace.splits, set(search_texts(workspace))
    assert looked_at > {section.text for section in splits.search}
    others = (*splits.train, *splits.calibration, *splits.gate, *splits.tasks_gate)
    assert looked_at.isdisjoint(section.text for section in others)
