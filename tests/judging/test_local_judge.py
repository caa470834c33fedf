"""A judge on an engine: a scripted one that reads its prompt, a random model, and the demo model itself."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path

import pytest
from answers import answers, prose
from chat_server import QUESTION
from fake_engine import FakeEngine
from tiny_llama import tiny_llama

from configs.behaviour import BehaviourSettings, JudgeSettings
from configs.engine import EngineSettings
from configs.weights import WeightSettings
from tasks.behaviour.answers import Answers, answers_of
from tasks.behaviour.prompts import embedded_prompts
from tasks.behaviour.report import compare_answers
from tasks.compression.build import build_artifact
from tasks.engines.open import open_engine
from tasks.engines.protocol import Generation, GenerationRequest
from tasks.judging.family import families_of_folder
from tasks.judging.local import EngineJudge
from tasks.judging.report import JudgeReport, run_judge
from tasks.quality.tokenizer import TextTokenizer
from tasks.store.artifact import Artifact
from tasks.store.store import Store

COUNT = 80
SOURCE = answers([prose(i) for i in range(COUNT)], "source")
SETTINGS = JudgeSettings.model_validate({"provider": {"kind": "local", "family": "house"}})
TODAY = date(2026, 11, 22)


class ReadingEngine(FakeEngine):
    """Prefers the answer that stands in SOURCE for the request it reads in its prompt."""

    def __init__(self, folder: Path) -> None:
        super().__init__(EngineSettings(engine="openvino"), vocab_size=300)
        self._tokenizer = TextTokenizer(folder)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        right = {p.text: row.text for p, row in zip(SOURCE.prompts, SOURCE.rows, strict=True)}
        replies = []
        for request in requests:
            found = QUESTION.search(self._tokenizer.decode(request.prompt))
            assert found is not None, "the judge was not shown the whole question"
            asked, a, b = found.groups()
            said = "TIE" if a == b else "A" if a == right[asked] else "B" if b == right[asked] else "TIE"
            tokens = tuple(self._tokenizer.encode(said, add_special_tokens=False))
            replies.append(Generation((*tokens, self._tokenizer.eos_id), (0.0,) * (len(tokens) + 1)))
        return replies


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny")).folder


def asked(judge: EngineJudge, candidate: Answers, families: frozenset[str]) -> JudgeReport:
    return run_judge(judge, SOURCE.prompts, SOURCE, candidate, SETTINGS, judged_families=families, day=TODAY)


def test_a_local_judge_reads_the_whole_question_and_votes(tiny: Path) -> None:
    worse = answers(["Nothing." if i < 30 else prose(i) for i in range(COUNT)], "candidate")
    judge = EngineJudge(ReadingEngine(tiny), tiny, SETTINGS.provider, name="reader")
    report = asked(judge, worse, frozenset({"smollm"}))

    assert judge.families == {"llama", "house"}
    assert report.may_vote
    assert (report.losses, report.wins, report.verdict) == (30, 0, "FAIL")
    assert asked(judge, worse, frozenset({"llama"})).may_vote is False


def test_a_random_model_has_no_vote(tiny: Path) -> None:
    engine = FakeEngine(EngineSettings(engine="openvino"), vocab_size=300)
    judge = EngineJudge(engine, tiny, SETTINGS.provider, name="random")
    report = asked(judge, SOURCE, frozenset({"smollm"}))

    assert not report.may_vote
    assert "known-answer probes" in report.reasons[0]
    assert "unparsable" in report.reasons[0]


def test_an_engine_that_fails_is_reported(tiny: Path) -> None:
    engine = FakeEngine(EngineSettings(engine="openvino"), vocab_size=300)
    engine.close()
    report = asked(EngineJudge(engine, tiny, SETTINGS.provider, name="gone"), SOURCE, frozenset({"smollm"}))

    assert report.reasons == ("the judge gone failed: the engine is closed",)
    assert not report.may_vote


@pytest.mark.model
def test_the_demo_model_answers_and_fails_as_a_judge(shared_store: Store, demo_checkpoint: Artifact) -> None:
    """The whole path for real: it answers the same twice, and as a judge it is kin and cannot tell broken from whole."""
    settings = BehaviourSettings(max_new_tokens=16)
    judging = JudgeSettings.model_validate(
        {"provider": {"kind": "local"}, "calibration": {"probes": 8, "identical": 8}}
    )
    exported = build_artifact(shared_store, demo_checkpoint, "openvino", WeightSettings(), ())
    prompts = embedded_prompts()[::2]
    name = "smollm2-135m-instruct"
    with open_engine(exported, EngineSettings(engine="openvino")) as engine:
        once, again = (
            answers_of(engine, exported.folder, settings, model=name, prompts=prompts) for _ in range(2)
        )
        judge = EngineJudge(engine, exported.folder, judging.provider, name=name)
        families = families_of_folder(demo_checkpoint.folder, name)
        report = run_judge(judge, prompts, once, again, judging, judged_families=families, day=TODAY)

    behaviour = compare_answers(once, again, settings)
    assert [row.change for row in behaviour.rows] == [0] * 64
    texts = {prompt.text: row.text for prompt, row in zip(prompts, once.rows, strict=True)}
    assert "photosynthesis" in texts["What is photosynthesis?"].lower()

    assert not report.may_vote
    assert report.verdict is None
    unmet = {reason.partition(":")[0] for reason in report.reasons}
    assert {"family", "known-answer probes"} <= unmet
    assert "judged model's family: smollm" in report.reasons[0]
    assert len(report.probes) == 8
