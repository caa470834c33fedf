"""`keiryo run` on bad tasks: the rollout exit code 2 where nothing could start, else ERROR with exit code 1; the reason
names task, item and field."""

import json
from pathlib import Path

import pytest
from click.testing import Result
from fake_engine import FakeEngine
from tiny_llama import tiny_llama
from typer.testing import CliRunner

from configs.engine import EngineSettings
from tasks.release import alone, measuring
from tasks.release.summary import RolloutSummary

TASK = """task: capitals
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
num_fewshot: 0
doc_to_text: "{{{{context}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
RECIPE = """
name: bad
model: {{name: tiny, source: {{kind: folder, path: {model}}}}}
quality:
  margins: {{perplexity_fraction: 0.05, kl_nats: 0.05, accuracy: 0.2}}
  tasks: {{pack: {folder}, names: [{task}], items: 200}}
  text: {{section_characters: 300, search_sections: 8}}
requests: {{count: 8, max_new_tokens: 12, min_new_tokens: 4, one_stream_new_tokens: 4, repeats: 1}}
profile: {{batch_sizes: [1], context_tokens: [8], new_tokens: 4}}
quantize:
  candidates: [{{engine: openvino, weights: {{bits: 8, symmetric: false}}, kv_cache: [u8]}}]
  scheduler: {{max_num_seqs: 2}}
batching: null
"""
ROWS = [
    {"id": n, "context": f"City {n} is in", "choices": ["Italy", "Chad"], "answer": n % 2} for n in range(200)
]


class Command:
    """`keiryo run` over a folder of tasks, with fakes in the places of engines and exports, and without Prefect."""

    def __init__(self, root: Path) -> None:
        self.root, self.tasks, self.model = root, root / "tasks", root / "model"
        self.tasks.mkdir()
        tiny_llama(self.model)
        self.write(ROWS)

    def write(self, rows: list[dict]) -> None:
        (self.tasks / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (self.tasks / "capitals.yaml").write_text(TASK.format(rows=self.tasks / "rows.jsonl"))

    def run(self, task: str = "capitals") -> tuple[int, dict]:
        """(exit code, the one JSON document on stdout)."""
        done = self.invoke(task)
        return done.exit_code, json.loads(done.stdout)

    def invoke(self, task: str = "capitals") -> Result:
        from flows.cli import app

        recipe = self.root / "recipe.yaml"
        recipe.write_text(RECIPE.format(model=self.model, folder=self.tasks, task=task))
        return CliRunner().invoke(app, ["run", str(recipe), "--json"], catch_exceptions=False)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    import flows.rollout as rollout_module
    import flows.start as start
    import tasks.profiling.profile as profiling
    import tasks.quantization.search as search

    # A fresh process would know nothing of the fakes.
    monkeypatch.setattr(search, "check_reloads", lambda workspace, candidates: {})

    def build(store, checkpoint, engine, weights, calibration, *, integer_cache=False, grids=None):
        def write(out: Path) -> None:
            for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
                (out / name).write_bytes((checkpoint.folder / name).read_bytes())

        if engine == "transformers":
            return checkpoint
        return store.seal(write, kind="openvino", parent=checkpoint.digest, recipe={"weights": weights.label})

    def opened(artifact, settings: EngineSettings, **_: object) -> FakeEngine:
        return FakeEngine(settings, vocab_size=300)

    def run(config: Path, overrides: list[str]) -> RolloutSummary:
        return RolloutSummary.model_validate(rollout_module.rollout.fn(str(config), overrides).data)

    monkeypatch.setenv("KEIRYO_HOME", str(tmp_path / "store"))
    monkeypatch.setenv("KEIRYO_MLFLOW", str(tmp_path / "mlflow"))
    monkeypatch.setattr(measuring, "open_engine", opened)
    monkeypatch.setattr(profiling, "open_engine", opened)
    monkeypatch.setattr(alone, "open_engine", opened)
    monkeypatch.setattr(alone, "import_engine", lambda engine: None)
    monkeypatch.setattr(measuring, "served_alone", alone.serve)
    monkeypatch.setattr(measuring, "build_artifact", build)
    monkeypatch.setattr(start, "run", run)
    for name in ("prepare", "profile_stage", "quantize_stage", "batching_stage", "adapt_stage", "distill_stage",
                 "close_rollout", "abandon_rollout"):  # fmt: skip
        monkeypatch.setattr(rollout_module, name, getattr(rollout_module, name).fn)
    return Command(tmp_path)


def test_good_tasks_are_judged(command: Command) -> None:
    """What follows fails for its fault alone."""
    code, summary = command.run()
    assert (code, summary["verdict"]) == (0, "PASS")


def test_a_field_that_one_row_lacks_is_an_error_that_names_it(command: Command) -> None:
    command.write([*ROWS[:7], {**ROWS[7], "context": None}, *ROWS[8:]])
    code, summary = command.run()
    assert (code, summary["verdict"], summary["release"]) == (1, "ERROR", None)
    assert "task capitals, item 7: field 'context' is missing" in summary["reason"]


def test_a_task_that_does_not_exist_ends_before_anything_runs(command: Command) -> None:
    done = command.invoke(task="capitols")
    lines = [line for line in done.stderr.splitlines() if line.startswith("keiryo:")]
    assert (done.exit_code, len(lines), done.stdout) == (2, 1, "")
    assert "no task capitols in" in lines[0]


def test_a_task_with_too_few_items_for_the_margin_is_refused(command: Command) -> None:
    command.write(ROWS[:6])
    done = command.invoke()
    assert done.exit_code == 2
    assert "accuracy of capitals: 6 items cannot decide a margin of 0.2" in done.stderr


def test_a_yaml_that_does_not_parse_ends_before_anything_runs(command: Command) -> None:
    (command.tasks / "capitals.yaml").write_text("task: capitals\nmetric_list: [{metric: acc\n")
    done = command.invoke()
    lines = [line for line in done.stderr.splitlines() if line.startswith("keiryo:")]
    assert (done.exit_code, len(lines), done.stdout) == (2, 1, "")
    assert "capitals.yaml: not a task YAML" in lines[0]
