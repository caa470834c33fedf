from pathlib import Path

import pytest

from configs.quality import Margins, QualitySettings, TaskSettings
from tasks.data.text import TextSplits, split_text
from tasks.quality.gate import judge
from tasks.quality.pack.write import write_pack
from tasks.quality.quality_error import QualityError
from tasks.quality.score import samples_of, score_candidate, score_reference

QUALITY = QualitySettings(tasks=TaskSettings(names=("keiryo_world_facts",), items=70))


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> tuple[TextSplits, Path]:
    folder = tmp_path_factory.mktemp("pack")
    splits = split_text(QUALITY.text, seed=0)
    short = {name: tuple(s.model_copy(update={"text": s.text[:60]}) for s in getattr(splits, name))
             for name in ("search", "gate")}  # fmt: skip
    write_pack(folder, splits, seed=0)
    return splits.model_copy(update=short), folder


def test_a_model_passes_its_own_gate_with_zero_flips(
    tiny_engine, tiny_checkpoint, material, tmp_path
) -> None:
    splits, pack = material
    arguments = (tiny_engine, tiny_checkpoint, QUALITY, splits, pack, "gate")
    reference = score_reference(*arguments, logits=tmp_path / "ref")
    candidate = score_candidate(*arguments, logits=tmp_path / "ref", partial=tmp_path / "partial")
    assert reference.items_digest == candidate.items_digest
    verdict = judge(reference, candidate, Margins(accuracy=0.2), alpha=0.05)
    assert verdict.verdict == "PASS", verdict.reason
    assert verdict.flip_rate == 0
    again = score_candidate(*arguments, logits=tmp_path / "ref", partial=tmp_path / "partial")
    assert again == candidate


def test_a_screen_scores_the_search_text_alone(tiny_engine, tiny_checkpoint, material, tmp_path) -> None:
    splits, pack = material
    arguments = (tiny_engine, tiny_checkpoint, QUALITY, splits, pack, "search")
    score_reference(*arguments, logits=tmp_path / "ref", with_tasks=False)
    screen = score_candidate(*arguments, logits=tmp_path / "ref", with_tasks=False)
    assert {(row.task, row.metric) for row in screen.rows} == {
        ("text", "perplexity"), ("text", "kl"), ("text", "flips"),
    }  # fmt: skip
    assert {row.item for row in screen.rows} == {section.id for section in splits.search}


def test_tasks_that_have_no_search_items_are_refused(
    tiny_engine, tiny_checkpoint, material, tmp_path
) -> None:
    splits, _ = material
    with pytest.raises(QualityError, match="with_tasks=False"):
        score_reference(
            tiny_engine, tiny_checkpoint, QUALITY, splits, None, "search", logits=tmp_path / "ref"
        )


def test_an_item_scored_twice_is_refused(tiny_engine, tiny_checkpoint, material, tmp_path) -> None:
    splits, pack = material
    rows = score_reference(
        tiny_engine, tiny_checkpoint, QUALITY, splits, pack, "search", logits=tmp_path / "r", with_tasks=False
    ).rows
    with pytest.raises(QualityError, match="stands twice under perplexity"):
        samples_of([*rows, rows[0]])
