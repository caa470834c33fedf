"""Input that cannot be judged ends with one line that says what and where, never with a PASS."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from fake_engine import FakeEngine
from tiny_llama import tiny_llama

from configs.engine import EngineSettings
from configs.quality import Margins
from tasks.data.text import Section
from tasks.engines.protocol import EngineError, ScoreRequest, TokenScores
from tasks.quality.divergence import diverge, reference_logits
from tasks.quality.gate import judge
from tasks.quality.harness import TaskSet
from tasks.quality.quality_error import QualityError
from tasks.quality.samples import Sample, Samples
from tasks.quality.score_log import ScoreLog
from tasks.quality.tokenizer import TextTokenizer

LOADER = """import json
from pathlib import Path

import datasets


def load(file, **_):
    lines = (Path(__file__).parent / file).read_text(encoding="utf-8").splitlines()
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}
"""
YAML = """task: capitals
custom_dataset: !function rows.load
dataset_kwargs: {{file: rows.jsonl}}
test_split: test
output_type: multiple_choice
num_fewshot: 0
doc_to_text: {text}
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
ROWS = [
    {"id": f"c{n}", "context": f"City {n} is in", "choices": ["Italy", "Chad"], "answer": n % 2}
    for n in range(80)
]
ACCURACY = Margins(perplexity_fraction=None, kl_nats=None, accuracy=0.1)


def without(row: dict, field: str) -> dict:
    return {name: value for name, value in row.items() if name != field}


def write_task(folder: Path, rows: Sequence[dict], text: str = '"{{context}}"') -> Path:
    (folder / "rows.py").write_text(LOADER)
    (folder / "capitals.yaml").write_text(YAML.format(text=text))
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return TextTokenizer(tiny_llama(tmp_path_factory.mktemp("tiny") / "model").folder)


@pytest.fixture(scope="module")
def other_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    """The same characters in other tokens: no merges."""
    folder = tiny_llama(tmp_path_factory.mktemp("other") / "model").folder
    path = folder / "tokenizer.json"
    definition = json.loads(path.read_text(encoding="utf-8"))
    definition["model"]["merges"] = []
    path.write_text(json.dumps(definition), encoding="utf-8")
    return TextTokenizer(folder)


class Broken(FakeEngine):
    """Answers every score with NaN, or refuses."""

    def __init__(self, refuse: bool = False) -> None:
        super().__init__(EngineSettings(engine="transformers"), vocab_size=300)
        self.refuse = refuse

    def score(self, requests: Iterable[ScoreRequest], *, with_logits: bool = False) -> Iterable[TokenScores]:
        if self.refuse:
            raise EngineError("the device\nis gone")
        for scored in super().score(requests, with_logits=with_logits):
            logits = None if scored.logits is None else scored.logits * np.nan
            yield TokenScores(scored.logprobs * np.nan, scored.is_argmax, logits)


def engine(noise: float = 0.0) -> FakeEngine:
    return FakeEngine(EngineSettings(engine="transformers"), vocab_size=300, noise=noise)


def score(folder: Path, tokenizer: TextTokenizer, items: int = 80, on: FakeEngine | None = None) -> Samples:
    tasks = TaskSet(("capitals",), include=folder, seed=0)
    scored = tasks.score(on or engine(), tokenizer, {"capitals": items}, max_tokens=256)
    return Samples(items_digest="0" * 64, rows=scored.rows, notes=scored.notes)


def complaint(caught: pytest.ExceptionInfo[Exception]) -> str:
    """The message, which is one line."""
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_good_task_is_scored(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    """What follows fails for its fault alone."""
    good = score(write_task(tmp_path, ROWS), tokenizer)
    assert judge(good, good, ACCURACY, alpha=0.05).verdict == "PASS"


def test_a_task_that_does_not_exist(tmp_path: Path) -> None:
    write_task(tmp_path, ROWS)
    with pytest.raises(QualityError) as caught:
        TaskSet(("capitols",), include=tmp_path, seed=0)
    assert complaint(caught) == (f"quality.tasks.names: no task capitols in {tmp_path}; nearest: capitals")


def test_a_yaml_that_does_not_parse(tmp_path: Path) -> None:
    write_task(tmp_path, ROWS)
    (tmp_path / "capitals.yaml").write_text("task: capitals\nmetric_list: [{metric: acc\n")
    with pytest.raises(QualityError) as caught:
        TaskSet(("capitals",), include=tmp_path, seed=0)
    assert complaint(caught).startswith(f"{tmp_path / 'capitals.yaml'}: not a task YAML")
    assert "line" in complaint(caught)


def test_a_task_without_items(tmp_path: Path) -> None:
    write_task(tmp_path, [])
    with pytest.raises(QualityError, match="task capitals cannot be built: it has no items") as caught:
        TaskSet(("capitals",), include=tmp_path, seed=0)
    complaint(caught)


def test_data_that_are_not_there(tmp_path: Path) -> None:
    (write_task(tmp_path, ROWS) / "rows.jsonl").unlink()
    with pytest.raises(QualityError, match=r"task capitals: its data cannot be had .*rows\.jsonl") as caught:
        TaskSet(("capitals",), include=tmp_path, seed=0)
    complaint(caught)


@pytest.mark.parametrize("field", ["context", "choices", "answer"])
@pytest.mark.parametrize(
    "text", ['"{{context}}"', "context", '"{% for word in [context] %}{{word}}{{context}}{% endfor %}"']
)
def test_a_field_that_one_row_lacks(tmp_path: Path, tokenizer: TextTokenizer, field: str, text: str) -> None:
    rows = [*ROWS[:7], without(ROWS[7], field), *ROWS[8:]]
    with pytest.raises(QualityError) as caught:
        score(write_task(tmp_path, rows, text), tokenizer)
    assert complaint(caught) == f"task capitals, item 7: field {field!r} is missing; its YAML names it"


@pytest.mark.parametrize("text", ['"{{contxt}}"', "contxt"])
def test_a_field_that_no_row_has(tmp_path: Path, tokenizer: TextTokenizer, text: str) -> None:
    with pytest.raises(QualityError, match="contxt") as caught:
        score(write_task(tmp_path, ROWS, text), tokenizer)
    complaint(caught)


def test_a_field_that_the_template_asks_for_may_be_absent(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    rows = [{**row, "hint": "Rome" if number else None} for number, row in enumerate(ROWS)]
    text = '"{% if hint %}{{hint}}: {% endif %}{{context}}{{range(2)|list}}"'
    assert len(score(write_task(tmp_path, rows, text), tokenizer).rows) == 80


def test_an_id_that_stands_twice(tmp_path: Path) -> None:
    rows = [*ROWS[:9], {**ROWS[9], "id": "c4"}, *ROWS[10:]]
    with pytest.raises(QualityError) as caught:
        TaskSet(("capitals",), include=write_task(tmp_path, rows), seed=0)
    assert complaint(caught).startswith("task capitals: items 4 and 9 have the same id 'c4'")


def test_samples_that_hold_an_item_twice_are_an_error(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    good = score(write_task(tmp_path, ROWS), tokenizer)
    twice = good.model_copy(update={"rows": (*good.rows, good.rows[0])})
    verdict = judge(good, twice, ACCURACY, alpha=0.05)
    assert verdict.verdict == "ERROR"
    assert "acc of capitals, item '0' of the candidate occurs twice" in verdict.reason


def test_a_log_likelihood_that_is_not_finite(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    with pytest.raises(QualityError, match=r"task capitals: .*nan.*never an answer") as caught:
        score(write_task(tmp_path, ROWS), tokenizer, on=Broken())
    complaint(caught)


def test_a_sample_that_is_not_finite_is_an_error() -> None:
    rows = [Sample(task="t", metric="perplexity", item=str(n), item_hash="h", cluster=str(n), value=3.0, weight=2.0)
            for n in range(70)]  # fmt: skip
    broken = [*rows[:5], rows[5].model_copy(update={"value": float("nan")}), *rows[6:]]
    good, bad = (Samples(items_digest="0" * 64, rows=tuple(table)) for table in (rows, broken))
    verdict = judge(good, bad, Margins(kl_nats=None, accuracy=None), alpha=0.05)
    assert verdict.verdict == "ERROR"
    assert "perplexity of t, item '5' of the candidate: value nan is not finite" in verdict.reason


def test_an_engine_that_fails_says_on_which_task(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    with pytest.raises(EngineError) as caught:
        score(write_task(tmp_path, ROWS), tokenizer, on=Broken(refuse=True))
    assert complaint(caught) == "task capitals: the device is gone"


def test_a_baseline_from_another_tokenizer_is_an_error(
    tmp_path: Path, tokenizer: TextTokenizer, other_tokenizer: TextTokenizer
) -> None:
    folder = write_task(tmp_path, [{**row, "context": "the keys to the cabinet are"} for row in ROWS])
    before, after = score(folder, other_tokenizer), score(folder, tokenizer)
    verdict = judge(before, after, ACCURACY, alpha=0.05)
    assert verdict.verdict == "ERROR"
    assert "acc of capitals, item '0': its content changed" in verdict.reason


def test_reference_text_from_another_tokenizer_is_refused(
    tmp_path: Path, tokenizer: TextTokenizer, other_tokenizer: TextTokenizer
) -> None:
    sections = [Section(id="s0", topic="keys", text="the keys to the cabinet are on the table")]
    reference_logits(engine(), other_tokenizer, sections, tmp_path / "logits")
    with pytest.raises(QualityError, match="other sections or another tokenizer"):
        diverge(engine(), tokenizer, sections, tmp_path / "logits", ScoreLog(None))


def test_a_task_that_leaves_no_room_for_a_prompt(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    write_task(tmp_path, ROWS)
    (tmp_path / "capitals.yaml").write_text(
        YAML.format(text='"{{context}}"').replace("multiple_choice", "generate_until").replace("doc_to_choice: choices\n", "")
        .replace("metric: acc", "metric: exact_match") + "generation_kwargs: {until: [x], max_gen_toks: 256}\n"
    )  # fmt: skip
    with pytest.raises(QualityError, match="task capitals: max_gen_toks 256 leaves no room") as caught:
        score(tmp_path, tokenizer)
    complaint(caught)
