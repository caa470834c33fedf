"""Judges behind a real HTTP server: who earns a vote, who does not, and what the vote says."""

import json
from datetime import date
from pathlib import Path

import pytest
from answers import answers, prompts, prose
from chat_server import Reply, Script, chat_server

from configs.behaviour import EndpointJudge, JudgeSettings
from tasks.behaviour.answers import Answers
from tasks.behaviour.error import BehaviourError
from tasks.judging.calibration import Criterion
from tasks.judging.endpoint import ChatEndpoint
from tasks.judging.error import LabelError
from tasks.judging.report import JudgeReport, run_judge

COUNT = 80
SOURCE = answers([prose(i) for i in range(COUNT)], "source")
BETTER, WORSE = "Better than anything said of it before in so many words.", "Worse."
RIGHT = {prompt.text: prose(i) for i, prompt in enumerate(SOURCE.prompts)}
SMOLLM = frozenset({"smollm"})
TODAY = date(2026, 11, 22)


def perfect(request: str, a: str, b: str, number: int) -> Reply:
    """Knows the right answer to each request, and one that is better."""
    first, second = ({BETTER: 2, RIGHT.get(request): 1}.get(each, 0) for each in (a, b))
    return "TIE" if first == second else "A" if first > second else "B"


def loving_position_a(request: str, a: str, b: str, number: int) -> Reply:
    return "A"


def always_tie(request: str, a: str, b: str, number: int) -> Reply:
    return "TIE"


def rambling(request: str, a: str, b: str, number: int) -> Reply:
    return "Both answers have their merits, and I would rather not say."


def good_on_probes_only(request: str, a: str, b: str, number: int) -> Reply:
    """Sees what is broken, and otherwise takes what stands first."""
    return "A" if BETTER in (a, b) or WORSE in (a, b) else perfect(request, a, b, number)


def judged(
    script: Script,
    candidate: Answers,
    families: frozenset[str] = SMOLLM,
    model: str = "qwen3-32b",
    retries: int = 1,
    **settings: object,
) -> tuple[JudgeReport, list[dict[str, object]]]:
    with chat_server(script) as server:
        provider = EndpointJudge(
            kind="endpoint", base_url=server.base_url, model=model, retries=retries, backoff_s=0.01
        )
        asked = JudgeSettings.model_validate({"provider": provider, **settings})
        with ChatEndpoint(provider) as judge:
            report = run_judge(
                judge, SOURCE.prompts, SOURCE, candidate, asked, judged_families=families, day=TODAY
            )
        return report, server.requests


def candidate(changed: dict[int, str]) -> Answers:
    return answers([changed.get(i, prose(i)) for i in range(COUNT)], "candidate")


def criterion(report: JudgeReport, name: str) -> Criterion:
    return next(each for each in report.criteria if each.name == name)


def test_a_perfect_judge_votes_and_counts_what_is_there() -> None:
    changed = dict.fromkeys(range(12), BETTER) | dict.fromkeys(range(12, 16), WORSE)
    report, requests = judged(perfect, candidate(changed))

    assert report.may_vote
    assert report.reasons == ()
    assert (report.wins, report.ties, report.losses) == (12, 64, 4)
    assert report.loss_rate is not None
    assert report.loss_rate.estimate == pytest.approx(-0.1)
    assert report.verdict == "PASS"
    assert {each.met for each in report.criteria} == {True}
    assert len(report.probes) == 48
    # Probes and changed pairs in both orders, identical answers once, unchanged pairs never.
    assert len(requests) == 2 * 48 + 64 + 2 * 16
    assert {(each["temperature"], each["model"]) for each in requests} == {(0, "qwen3-32b")}
    assert JudgeReport.model_validate_json(report.model_dump_json()) == report


def test_a_candidate_that_loses_fails_and_one_near_the_margin_is_undecided() -> None:
    lost, _ = judged(perfect, candidate(dict.fromkeys(range(24), WORSE)))
    assert (lost.losses, lost.verdict) == (24, "FAIL")

    near, _ = judged(perfect, candidate(dict.fromkeys(range(8), WORSE)))
    assert near.may_vote
    assert near.verdict == "INCONCLUSIVE"


@pytest.mark.parametrize(
    ("script", "unmet"),
    [
        (loving_position_a, {"known-answer probes", "position bias"}),
        (always_tie, {"known-answer probes"}),
        (rambling, {"known-answer probes", "position bias"}),
    ],
)
def test_a_judge_that_fails_its_calibration_has_no_vote_and_the_report_says_why(
    script: Script, unmet: set[str]
) -> None:
    report, requests = judged(script, candidate(dict.fromkeys(range(24), WORSE)))

    assert not report.may_vote
    assert {reason.partition(":")[0] for reason in report.reasons} == unmet
    assert {each.name for each in report.criteria if not each.met} == unmet
    assert (report.verdict, report.loss_rate, report.pairs) == (None, None, ())
    assert len(requests) == 2 * 48 + 64, "it was asked about the candidate although it has no vote"


def test_a_judge_that_is_consistent_on_easy_pairs_only_has_no_vote() -> None:
    report, _ = judged(good_on_probes_only, candidate(dict.fromkeys(range(40), BETTER)))

    assert criterion(report, "known-answer probes").met
    assert [reason.partition(":")[0] for reason in report.reasons] == ["position consistency"]
    assert criterion(report, "position consistency").estimate == 0
    assert {pair.result for pair in report.pairs} == {"inconsistent", "tie"}
    assert (report.verdict, report.loss_rate) == (None, None)


def test_too_few_changed_pairs_do_not_show_consistency() -> None:
    report, _ = judged(perfect, candidate({0: WORSE, 1: WORSE}))

    assert not report.may_vote
    assert "2 of 2, at least 0.22" in report.reasons[0]


def test_kin_has_no_vote_however_good_it_is() -> None:
    report, _ = judged(perfect, candidate({}), families=frozenset({"qwen"}))

    assert report.reasons == ("family: the judge is of the judged model's family: qwen",)
    assert criterion(report, "known-answer probes").met
    unknown, _ = judged(perfect, candidate({}), model="house-judge")
    assert "the judge's family is unknown" in unknown.reasons[0]


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((500, {}, "out of memory"), "HTTP 500: out of memory"),
        ((429, {"retry-after": "0"}, "slow down"), "HTTP 429: slow down"),
        ((404, {}, "no such model"), "HTTP 404: no such model"),
        ((200, {}, "<html>welcome</html>"), "answered with no chat completion: <html>"),
        ((200, {}, json.dumps({"choices": []})), "answered with no chat completion"),
        ((200, {}, json.dumps({"choices": [{"message": {"content": 3}}]})), "is no text"),
    ],
)
def test_an_endpoint_that_does_not_answer_is_reported_and_has_no_vote(
    reply: tuple[int, dict[str, str], str], message: str
) -> None:
    report, requests = judged(lambda *_: reply, candidate({0: WORSE}))

    assert not report.may_vote
    assert report.verdict is None
    assert message in report.reasons[0]
    retried = reply[0] in (500, 429)
    assert len(requests) >= (2 if retried else 1)


def test_what_was_learnt_before_an_endpoint_went_down_stays_in_the_report() -> None:
    def dies(request: str, a: str, b: str, number: int) -> Reply:
        return (503, {}, "gone") if {BETTER} & {a, b} else perfect(request, a, b, number)

    report, _ = judged(dies, candidate(dict.fromkeys(range(20), BETTER)))

    assert not report.may_vote
    assert "HTTP 503: gone" in report.reasons[0]
    assert criterion(report, "known-answer probes").met


def labels(tmp_path: Path, truthful: bool) -> str:
    rows = []
    for i in range(40):
        pair = (RIGHT[f"Tell me about number {i}."], WORSE)
        a, b = pair if i % 2 else pair[::-1]
        label = "A" if (i % 2 == 1) == truthful else "B"
        rows.append({"prompt": f"Tell me about number {i}.", "answer_a": a, "answer_b": b, "label": label})
    path = tmp_path / "labels.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_people_are_asked_too(tmp_path: Path) -> None:
    changed = candidate(dict.fromkeys(range(20), BETTER))
    agreed, _ = judged(perfect, changed, calibration={"human_labels": labels(tmp_path, True)})
    assert agreed.may_vote
    assert criterion(agreed, "human agreement").estimate == 1

    opposed, _ = judged(perfect, changed, calibration={"human_labels": labels(tmp_path, False)})
    assert not opposed.may_vote
    assert "human agreement: kappa -1.00" in opposed.reasons[0]

    with pytest.raises(LabelError, match="give a JSONL file"):
        judged(perfect, changed, calibration={"human_labels": str(tmp_path / "none")})


def test_answers_to_other_prompts_are_refused() -> None:
    other = answers([prose(i) for i in range(COUNT)], "candidate", prompts(COUNT, expects="word"))
    with pytest.raises(BehaviourError, match="other prompts"):
        judged(perfect, other)
