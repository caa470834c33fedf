from pathlib import Path

import pytest
from run_tasks import run_tasks

from configs.quality import Margins, TextSettings
from tasks.data.text import Section, split_text
from tasks.quality.divergence import diverge, reference_logits
from tasks.quality.gate import judge
from tasks.quality.pack.write import write_pack
from tasks.quality.quality_error import QualityError
from tasks.quality.sample_set import samples_of
from tasks.quality.samples import Samples
from tasks.quality.score_log import ScoreLog
from tasks.quality.tokenizer import TextTokenizer


@pytest.fixture(scope="module")
def sections() -> tuple[Section, ...]:
    gate = split_text(TextSettings(), seed=0).gate
    return tuple(section.model_copy(update={"text": section.text[:60]}) for section in gate)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pack")
    write_pack(folder, split_text(TextSettings(), seed=0), seed=0)
    return folder / "gate"


def test_a_model_passes_its_own_gate_with_zero_flips(
    tiny_engine, tiny_checkpoint, sections, pack, tmp_path
) -> None:
    tokenizer = TextTokenizer(tiny_checkpoint)

    def tasks():
        return run_tasks(
            tiny_engine, tokenizer, ["keiryo_world_facts"], include=pack, items=70, seed=0, max_tokens=512
        )

    reference = samples_of(
        [*reference_logits(tiny_engine, tokenizer, sections, tmp_path / "logits"), *tasks()]
    )
    text = diverge(tiny_engine, tokenizer, sections, tmp_path / "logits", ScoreLog(None))
    candidate = samples_of([*text, *tasks()])
    assert reference.items_digest == candidate.items_digest
    verdict = judge(reference, candidate, Margins(accuracy=0.2), alpha=0.05)
    assert verdict.verdict == "PASS", verdict.reason
    assert verdict.flip_rate == 0
    assert sum(row.value for row in text if row.metric in ("kl", "flips")) == 0


def test_an_item_scored_twice_is_refused(tiny_engine, tiny_checkpoint, sections, tmp_path) -> None:
    rows = reference_logits(tiny_engine, TextTokenizer(tiny_checkpoint), sections, tmp_path / "logits")
    assert isinstance(samples_of(rows), Samples)
    with pytest.raises(QualityError, match="stands twice under perplexity"):
        samples_of([*rows, rows[0]])


def test_nothing_scored_is_refused() -> None:
    with pytest.raises(QualityError, match="nothing was scored"):
        samples_of([])
