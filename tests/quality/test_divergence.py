from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr, softmax

from tasks.data.text import Section
from tasks.quality.divergence import diverge, kl_and_flips, reference_logits, reference_samples
from tasks.quality.quality_error import QualityError
from tasks.quality.score_log import ScoreLog
from tasks.quality.tokenizer import TextTokenizer

SECTIONS = tuple(
    Section(id=f"t-{n}", topic="t", text="the keys to the cabinet are on the table " * (n + 1))
    for n in range(4)
)


class _Bent:
    """An engine whose logits are another engine's, times a factor."""

    def __init__(self, engine, factor: float) -> None:
        self._engine, self._factor = engine, factor

    def score(self, requests, *, with_logits=False):
        for request, scored in zip(
            requests, self._engine.score(list(requests), with_logits=True), strict=True
        ):
            logits = scored.logits * self._factor
            logprobs = log_softmax(logits, axis=1)[np.arange(len(logits)), list(request.targets)]
            yield type(scored)(logprobs.astype(np.float32), scored.is_argmax, logits)


def test_a_model_does_not_diverge_from_itself(tiny_engine, tiny_checkpoint: Path, tmp_path: Path) -> None:
    tokenizer = TextTokenizer(tiny_checkpoint)
    before = reference_logits(tiny_engine, tokenizer, SECTIONS, tmp_path / "ref")
    rows = diverge(tiny_engine, tokenizer, SECTIONS, tmp_path / "ref", ScoreLog(None))
    kl = [row for row in rows if row.metric == "kl"]
    assert len(kl) == len(SECTIONS)
    assert sum(row.value for row in kl) / sum(row.weight for row in kl) < 1e-6
    assert sum(row.value for row in rows if row.metric == "flips") == 0
    assert {(r.item, r.value, r.weight) for r in before} == {
        (r.item, r.value, r.weight) for r in rows if r.metric == "perplexity"
    }
    assert before == reference_samples(tmp_path / "ref")


def test_kl_and_nll_are_those_of_scipy(tiny_engine, tiny_checkpoint: Path, tmp_path: Path) -> None:
    tokenizer = TextTokenizer(tiny_checkpoint)
    reference_logits(tiny_engine, tokenizer, SECTIONS, tmp_path / "ref")
    bent = _Bent(tiny_engine, 0.5)
    rows = diverge(bent, tokenizer, SECTIONS, tmp_path / "ref", ScoreLog(None))  # type: ignore[arg-type]
    from tasks.engines.protocol import ScoreRequest

    for section in SECTIONS:
        ids = tokenizer.encode(section.text, add_special_tokens=False)
        scored = next(tiny_engine.score([ScoreRequest((tokenizer.prefix_id,), tuple(ids))], with_logits=True))
        p, q = softmax(scored.logits, axis=1), softmax(scored.logits * 0.5, axis=1)
        nll = -np.log(q)[np.arange(len(ids)), ids].sum()
        mine = {row.metric: row for row in rows if row.item == section.id}
        assert mine["kl"].value == pytest.approx(rel_entr(p, q).sum(), rel=2e-3)
        assert mine["perplexity"].value == pytest.approx(nll, rel=1e-5)
        assert mine["perplexity"].weight == len(ids)  # the first token too, after the prefix token
        assert mine["kl"].cluster == section.id
        assert mine["flips"].value == 0  # scaling keeps the order


def test_flips_count_changed_argmaxes() -> None:
    reference = np.array([[0, -1, -2], [0, -1, -2], [-3, 0, -1]], dtype=np.float16)
    candidate = np.array([[-1, 0, -2], [0, -1, -2], [0, -1, -1]], dtype=np.float16)
    kl, flips = kl_and_flips(reference, candidate)
    assert flips == 2
    p, q = softmax(reference.astype(float), axis=1), softmax(candidate.astype(float), axis=1)
    assert kl == pytest.approx(rel_entr(p, q).sum(), rel=1e-6)


def test_scored_sections_are_not_scored_again(tiny_engine, tiny_checkpoint: Path, tmp_path: Path) -> None:
    tokenizer = TextTokenizer(tiny_checkpoint)
    reference_logits(tiny_engine, tokenizer, SECTIONS, tmp_path / "ref")
    with ScoreLog(tmp_path / "log") as log:
        first = diverge(tiny_engine, tokenizer, SECTIONS, tmp_path / "ref", log)
    lines = (tmp_path / "log").read_bytes().splitlines(keepends=True)
    (tmp_path / "log").write_bytes(b"".join(lines[:2]) + lines[2][:5])
    seen = tiny_engine.requests_seen
    with ScoreLog(tmp_path / "log") as log:
        assert diverge(tiny_engine, tokenizer, SECTIONS, tmp_path / "ref", log) == first
    assert tiny_engine.requests_seen - seen == len(SECTIONS) - 2


def test_some_of_the_sections_are_compared_with_their_own_logits(
    tiny_engine, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    tokenizer, path = TextTokenizer(tiny_checkpoint), tmp_path / "ref"
    reference_logits(tiny_engine, tokenizer, SECTIONS, path)
    some = diverge(tiny_engine, tokenizer, SECTIONS[1::2], path, ScoreLog(None))
    assert {row.item for row in some} == {section.id for section in SECTIONS[1::2]}
    assert sum(row.value for row in some if row.metric == "kl") < 1e-6 * sum(row.weight for row in some)


def test_damaged_files_and_other_sections_are_refused(
    tiny_engine, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    tokenizer, path = TextTokenizer(tiny_checkpoint), tmp_path / "ref"
    reference_logits(tiny_engine, tokenizer, SECTIONS, path)
    changed = SECTIONS[0].model_copy(update={"text": "Another text altogether."})
    with pytest.raises(QualityError, match="other sections"):
        diverge(tiny_engine, tokenizer, (changed, *SECTIONS[1:]), path, ScoreLog(None))
    path.write_bytes(path.read_bytes()[600:])
    with pytest.raises(QualityError, match="its index says"):
        diverge(tiny_engine, tokenizer, SECTIONS, path, ScoreLog(None))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(QualityError, match="cut off"):
        diverge(tiny_engine, tokenizer, SECTIONS, path, ScoreLog(None))


def test_nan_logits_write_nothing(tiny_engine, tiny_checkpoint: Path, tmp_path: Path) -> None:
    bent = _Bent(tiny_engine, float("nan"))
    with pytest.raises(QualityError, match=r"section t-0: .*non-finite"):
        reference_logits(bent, TextTokenizer(tiny_checkpoint), SECTIONS, tmp_path / "ref")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
