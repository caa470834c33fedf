import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from configs.quality import TextSettings
from tasks.data.text import split_text
from tasks.quality.harness import TaskSet
from tasks.quality.pack.write import write_pack
from tasks.quality.quality_error import QualityError
from tasks.quality.sample_set import joined_samples, samples_of
from tasks.quality.samples import Sample
from tasks.quality.score_log import ScoreLog
from tasks.quality.tokenizer import TextTokenizer

NAMES = ("keiryo_minimal_pairs", "keiryo_world_facts")


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pack")
    write_pack(folder, split_text(TextSettings(), seed=0), seed=0)
    return folder / "gate"


@pytest.fixture
def run(tiny_engine, tiny_checkpoint: Path, gate: Path):
    """run_tasks on the pack with the tiny model."""
    from run_tasks import run_tasks

    def call(
        items: int | None, *, names=NAMES, include: Path = gate, partial: Path | None = None, seed: int = 0
    ):
        return run_tasks(
            tiny_engine, TextTokenizer(tiny_checkpoint), names, include=include, items=items, seed=seed,
            max_tokens=256, partial=partial,
        )  # fmt: skip

    return call


def test_rows_carry_the_document_they_were_scored_on(run, gate: Path) -> None:
    rows = run(25)
    for name in NAMES:
        docs = [
            json.loads(line) for line in (gate / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        mine = [row for row in rows if row.task == name]
        assert len(mine) == 25
        assert {row.metric for row in mine} == {"acc"}
        assert [row.cluster for row in mine] == [docs[int(row.item)]["cluster"] for row in mine]
        assert len({row.item_hash for row in mine}) == 25


def test_more_items_extend_fewer_and_the_seed_draws_others(run) -> None:
    few, more, other = (
        {(r.task, r.item) for r in run(items, seed=seed)} for items, seed in ((8, 0), (20, 0), (20, 1))
    )
    assert few < more
    assert more != other


def test_what_a_look_adds_is_scored_as_if_all_were_asked_at_once(
    tiny_engine, tiny_checkpoint: Path, gate: Path
) -> None:
    tasks, text = TaskSet(NAMES, include=gate, seed=0), TextTokenizer(tiny_checkpoint)
    looks, requests = {}, {}
    for name, before, items in (("whole", 0, 20), ("first", 0, 8), ("added", 8, 20)):
        seen = tiny_engine.requests_seen
        asked = dict.fromkeys(NAMES, items)
        looks[name] = tasks.score(tiny_engine, text, asked, max_tokens=256, after=before)
        requests[name] = tiny_engine.requests_seen - seen
    assert requests["first"] + requests["added"] == requests["whole"]
    joined = joined_samples(samples_of(looks[name].rows, looks[name].notes) for name in ("first", "added"))
    whole = samples_of(looks["whole"].rows, looks["whole"].notes)
    assert (joined.rows, joined.items_digest) == (whole.rows, whole.items_digest)
    assert len(joined.notes) == len(whole.notes) == 40


def test_named_items_alone_are_scored_as_among_all(tiny_engine, tiny_checkpoint: Path, gate: Path) -> None:
    tasks, text = TaskSet(NAMES, include=gate, seed=0), TextTokenizer(tiny_checkpoint)
    every = tasks.score(tiny_engine, text, {NAMES[0]: 20}, max_tokens=256).rows
    names = {row.item for row in every}
    wanted = set(sorted(names)[::3])
    part = tasks.score(tiny_engine, text, {NAMES[0]: 20}, max_tokens=256, among=wanted).rows
    first = {row.item for row in tasks.score(tiny_engine, text, {NAMES[0]: 8}, max_tokens=256).rows}
    rest = tasks.score(tiny_engine, text, {NAMES[0]: 20}, max_tokens=256, after=8, among=wanted).rows

    def ordered(rows: Iterable[Sample]) -> list[Sample]:
        return sorted(rows, key=lambda row: (row.metric, row.item))

    assert ordered(part) == ordered(row for row in every if row.item in wanted)
    assert {row.item for row in rest} == wanted - first


def test_standard_output_stays_clean(run, capfd: pytest.CaptureFixture[str]) -> None:
    run(2)
    assert capfd.readouterr().out == ""


def test_a_run_that_was_killed_asks_only_what_it_had_not_heard(run, tiny_engine, tmp_path: Path) -> None:
    partial = tmp_path / "partial.jsonl"
    whole = run(20, partial=partial)
    lines = partial.read_bytes().splitlines(keepends=True)
    partial.write_bytes(b"".join(lines[: len(lines) // 2]) + b'{"key": "torn')
    seen = tiny_engine.requests_seen
    assert run(20, partial=partial) == whole
    assert 0 < tiny_engine.requests_seen - seen < len(lines)
    seen = tiny_engine.requests_seen
    assert run(20, partial=partial) == whole
    assert tiny_engine.requests_seen == seen


@pytest.fixture
def both(tiny_engine, tiny_checkpoint: Path):
    """(ours, lm-eval's hf model) over the same tiny weights."""
    from lm_eval.models.huggingface import HFLM

    from tasks.quality.engine_answers import EngineAnswers
    from tasks.quality.harness import EngineLM

    ours = EngineLM(EngineAnswers(tiny_engine, TextTokenizer(tiny_checkpoint), 256, ScoreLog(None)))
    return ours, HFLM(pretrained=str(tiny_checkpoint), device="cpu", dtype="float32", batch_size=4)


def _instances(kind: str, arguments: list[tuple]):
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=a, idx=n) for n, a in enumerate(arguments)]


def test_log_likelihoods_are_those_of_lm_evals_hf_model(both) -> None:
    pairs = [
        ("the keys to the cabinet", " are"),
        ("the keys to the cabinet", " is"),
        ("the keys to the cabinet ", "are on the table"),  # the space moves to the continuation
        ("", "the other one is not"),  # after the prefix token
        ("the table " * 200, "is not"),  # longer than the context: loses its beginning
    ]
    mine, theirs = (lm.loglikelihood(_instances("loglikelihood", pairs), disable_tqdm=True) for lm in both)
    for (ours, greedy), (reference, reference_greedy) in zip(mine, theirs, strict=True):
        assert ours == pytest.approx(reference, abs=2e-3)
        assert greedy == reference_greedy


def test_rolling_log_likelihoods_are_those_of_lm_evals_hf_model(both) -> None:
    texts = [("the keys to the cabinet are on the table",), ("the other one is not " * 80,)]
    mine, theirs = (
        lm.loglikelihood_rolling(_instances("loglikelihood_rolling", texts), disable_tqdm=True) for lm in both
    )
    assert mine == pytest.approx(theirs, rel=1e-5)


def test_completions_are_those_of_lm_evals_hf_model(both) -> None:
    settings = {"until": ["e"], "max_gen_toks": 12, "do_sample": False}
    prompts = [("the keys to the", settings), ("the other", {**settings, "until": []})]
    mine, theirs = (
        lm.generate_until(_instances("generate_until", prompts), disable_tqdm=True) for lm in both
    )
    assert mine == theirs


def test_sampling_is_refused(both) -> None:
    with pytest.raises(QualityError, match="greedy"):
        both[0].generate_until(_instances("generate_until", [("a", {"do_sample": True, "temperature": 1.0})]))


@pytest.mark.model
def test_the_demo_model_answers_as_under_lm_evals_hf_model(demo_checkpoint, torch_engine, gate: Path) -> None:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from run_tasks import run_tasks

    folder = demo_checkpoint.folder
    rows = run_tasks(
        torch_engine(folder), TextTokenizer(folder), NAMES, include=gate, items=50, seed=0, max_tokens=2048
    )
    chosen = {name: sorted(int(row.item) for row in rows if row.task == name) for name in NAMES}
    theirs = simple_evaluate(
        model=HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=32),
        tasks=list(NAMES),
        task_manager=TaskManager(include_path=str(gate), include_defaults=False),
        samples=chosen,
        bootstrap_iters=0,
    )
    expected = {
        (name, str(sample["doc_id"])): sample["acc"] for name in NAMES for sample in theirs["samples"][name]
    }
    assert {(row.task, row.item): row.value for row in rows} == expected
    right = sum(row.value for row in rows) / len(rows)
    assert 0.55 < right < 0.95  # signal: neither chance nor ceiling
