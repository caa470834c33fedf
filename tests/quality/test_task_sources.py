"""Tasks from everywhere: the embedded pack, a folder of YAMLs written for lm-eval, lm-eval's own by name."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_llama import tiny_llama

from configs.engine import EngineSettings, SchedulerSettings
from configs.quality import Margins, TextSettings
from tasks.data.text import split_text
from tasks.engines.protocol import Engine, Generation, GenerationRequest
from tasks.quality.gate import judge
from tasks.quality.pack.write import write_pack
from tasks.quality.samples import Samples
from tasks.quality.tokenizer import TextTokenizer
from tasks.quality.verdict import GateVerdict
from tasks.store.artifact import Artifact

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The task YAMLs over the data beside the project."""
    script = DATA / "make_tasks.py"
    if not script.is_file():
        pytest.skip("no ../shared/data beside this checkout")
    made = tmp_path_factory.mktemp("tasks")
    subprocess.run([sys.executable, str(script), str(made)], check=True, capture_output=True)
    return made


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def engine(checkpoint: Artifact) -> Iterator[Engine]:
    """The tiny model on an engine of the product, four requests at once."""
    from tasks.engines.open import open_engine

    settings = EngineSettings(engine="transformers", scheduler=SchedulerSettings(max_num_seqs=4))
    with open_engine(checkpoint, settings) as opened:
        yield opened


@pytest.fixture
def score(engine: Engine, checkpoint: Artifact):
    from tasks.quality.harness import TaskSet

    def call(names: tuple[str, ...], include: Path | None, items: int, seed: int = 0, **rest):
        tasks = TaskSet(names, include=include, seed=seed)
        wanted = dict.fromkeys(tasks.names, items)
        return tasks.score(engine, TextTokenizer(checkpoint.folder), wanted, max_tokens=256, **rest)

    return call


@pytest.fixture
def judged(checkpoint: Artifact, folder: Path):
    """The verdict on a text scored whole; by a closed-form model, whole texts are long."""
    from fake_engine import FakeEngine

    from tasks.quality.harness import TaskSet

    def call(name: str) -> GateVerdict:
        tasks = TaskSet((name,), include=folder, seed=0)
        engine = FakeEngine(EngineSettings(engine="transformers"), vocab_size=300)
        counts = {name: tasks.size(name)}
        rows = tasks.score(engine, TextTokenizer(checkpoint.folder), counts, max_tokens=2048).rows
        samples = Samples(items_digest="0" * 64, rows=rows)
        margins = Margins(perplexity_fraction=0.02, kl_nats=None, accuracy=None)
        return judge(samples, samples, margins, alpha=0.05)

    return call


def test_multiple_choice_in_two_languages(score, folder: Path) -> None:
    names = ("ext_arc_easy", "ext_piqa", "ext_hellaswag", "ext_jcommonsenseqa")
    scored = score(names, folder, 4)
    assert {(row.task, row.metric) for row in scored.rows} == {
        (name, metric) for name in names for metric in ("acc", "acc_norm")
    }
    assert len(scored.rows) == 4 * 2 * len(names)
    assert {row.value for row in scored.rows} <= {0.0, 1.0}

    lines = (DATA / "jcommonsenseqa/valid.jsonl").read_text(encoding="utf-8").splitlines()
    right = {(row.task, row.item): row.value for row in scored.rows if row.metric == "acc"}
    for note in scored.notes:
        assert (note.answer == note.target) == (right[note.task, note.item] == 1), note
        assert (note.margin_nats > 0) == (note.answer == note.target)
        if note.task == "ext_jcommonsenseqa":
            doc = json.loads(lines[int(note.item)])
            assert doc["question"] in note.prompt
            assert note.target == doc[f"choice{doc['label']}"]
            assert note.answer in [doc[f"choice{number}"] for number in range(5)]


def test_a_japanese_text_is_read_whole_and_judged_a_token(score, folder: Path, checkpoint: Artifact) -> None:
    scored = score(("ext_ja_wiki",), folder, 3)
    tables = {
        metric: [r for r in scored.rows if r.metric == metric] for metric in {r.metric for r in scored.rows}
    }
    assert tables.keys() == {"perplexity", "byte_perplexity", "bits_per_byte"}
    lines = (DATA / "ja_wiki_ppl/jsquad_valid_docs.jsonl").read_text(encoding="utf-8").splitlines()
    tokenizer = TextTokenizer(checkpoint.folder)
    for token, byte, bit in zip(
        *(tables[n] for n in ("perplexity", "byte_perplexity", "bits_per_byte")), strict=True
    ):
        page = json.loads(lines[int(token.item)])["page"]
        assert token.weight == len(tokenizer.encode(page))
        assert byte.weight == bit.weight == len(page.encode())
        assert token.value == pytest.approx(byte.value)
        assert byte.value / bit.value == pytest.approx(math.log(2))
        assert token.cluster == token.item  # the document
        assert " ".join(page.split())[:100] in next(n for n in scored.notes if n.item == token.item).prompt


def test_a_text_with_too_few_documents_is_an_error_that_says_so(judged) -> None:
    verdict = judged("ext_ja_wiki")
    assert verdict.verdict == "ERROR"
    assert "perplexity of ext_ja_wiki" in verdict.reason
    assert "59" in verdict.reason
    assert "60" in verdict.reason


def test_a_text_with_enough_documents_is_judged(judged) -> None:
    verdict = judged("ext_wikitext")
    assert (verdict.verdict, [m.metric for m in verdict.metrics]) == ("PASS", ["perplexity"])


class Listening:
    """An engine that notes how many requests came together, and may answer with given tokens."""

    def __init__(self, engine: Engine, answer: tuple[int, ...] | None = None) -> None:
        self.engine, self.answer, self.batches = engine, answer, []
        self.settings, self.vocab_size = engine.settings, engine.vocab_size

    def generate(self, requests: list[GenerationRequest]) -> list[Generation]:
        self.batches.append(len(requests))
        if self.answer is not None:
            return [Generation(self.answer, tuple(range(len(self.answer)))) for _ in requests]
        return self.engine.generate(requests)


def test_completions_come_from_one_batch(
    engine: Engine, checkpoint: Artifact, folder: Path, tmp_path: Path
) -> None:
    from tasks.quality.harness import TaskSet

    tasks, tokenizer = TaskSet(("ext_gsm8k",), include=folder, seed=0), TextTokenizer(checkpoint.folder)
    heard = Listening(engine)
    partial = tmp_path / "partial"
    first = tasks.score(heard, tokenizer, {"ext_gsm8k": 3}, max_tokens=256, partial=partial)
    assert heard.batches == [3]
    assert [(row.metric, row.value in (0, 1), row.weight) for row in first.rows] == [
        ("exact_match", True, 1)
    ] * 3
    more = tasks.score(heard, tokenizer, {"ext_gsm8k": 5}, max_tokens=256, partial=partial)
    assert heard.batches == [3, 2]  # the first three are asked with the same words and known
    assert set(first.rows) < set(more.rows)
    assert set(first.notes) < set(more.notes)


def test_an_answer_ends_at_a_stop_string_and_is_matched(
    engine: Engine, checkpoint: Artifact, folder: Path
) -> None:
    from tasks.quality.harness import TaskSet

    tokenizer = TextTokenizer(checkpoint.folder)
    tasks = TaskSet(("ext_gsm8k",), include=folder, seed=0)
    docs = [
        json.loads(line) for line in (DATA / "gsm8k/test_200.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    some = tasks.score(Listening(engine, (5,)), tokenizer, {"ext_gsm8k": 1}, max_tokens=256)
    truth = docs[int(some.rows[0].item)]["answer"].rpartition("#### ")[2]
    said = tokenizer.encode(f" So it is {truth}. Question: 99 + 1", add_special_tokens=False)
    told = tasks.score(Listening(engine, tuple(said)), tokenizer, {"ext_gsm8k": 1}, max_tokens=256)
    assert told.rows[0].value == 1
    assert told.notes[0].answer == f"So it is {truth}."
    assert told.notes[0].target.endswith(truth)
    assert docs[int(told.rows[0].item)]["question"][:100] in told.notes[0].prompt


def test_the_set_is_loaded_once_and_its_items_are_nested(score, folder: Path) -> None:
    from tasks.quality.harness import TaskSet

    tasks = TaskSet(("ext_gsm8k", "ext_piqa"), include=folder, seed=0)
    assert (tasks.names, tasks.size("ext_gsm8k"), tasks.size("ext_piqa")) == (
        ("ext_gsm8k", "ext_piqa"),
        200,
        500,
    )
    few, more, other = ({(r.item, r.item_hash) for r in score(("ext_arc_easy",), folder, items, seed).rows}
                        for items, seed in ((4, 0), (9, 0), (9, 1)))  # fmt: skip
    assert few < more
    assert more != other


def test_the_embedded_pack_is_a_folder_like_any_other(score, tmp_path: Path) -> None:
    write_pack(tmp_path, split_text(TextSettings(), seed=0), seed=0)
    scored = score(("keiryo_world_facts",), tmp_path / "gate", 5)
    assert {row.metric for row in scored.rows} == {"acc"}
    assert all(row.cluster != row.item for row in scored.rows)  # the template's, not the item's own
    assert all(note.prompt and note.answer for note in scored.notes)


def test_a_task_of_the_hub_without_the_network_is_one_clear_line(tmp_path: Path) -> None:
    script = """
from tasks.quality.harness import TaskSet
from tasks.quality.quality_error import QualityError
try:
    TaskSet(("boolq",), include=None, seed=0)
except QualityError as error:
    print(error)
"""
    environment = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
        "PATH": "/usr/bin:/bin",
    }
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2],
        env=environment, capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("task boolq: its data cannot be had")
    assert "quality.tasks.pack" in lines[0]
