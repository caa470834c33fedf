"""From answers to drift with intervals: what a user would notice, on answers whose drift is known."""

import math
from pathlib import Path
from statistics import NormalDist

import pytest
from answers import answers, prompts, prose
from fake_engine import FakeEngine
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from tiny_llama import tiny_llama

from configs.behaviour import BehaviourMargins, BehaviourSettings
from configs.engine import EngineSettings
from tasks.behaviour.answers import Answers
from tasks.behaviour.drift import CheckDrift, PairedValues, drift_of
from tasks.behaviour.error import BehaviourError
from tasks.behaviour.report import BehaviourReport, compare_answers, describe, run_behaviour

REFUSAL = "I'm sorry, but I can't help with that."
LOOP = "and on " * 20
COUNT = 100
MARGINS = BehaviourMargins(max_refusal_drift=0.1, max_repetition_drift=0.1, max_length_drift_fraction=0.2)


def check(report: BehaviourReport, name: str) -> CheckDrift:
    return next(each for each in report.checks if each.check == name)


def compared(changed: dict[int, str], margins: BehaviourMargins = MARGINS) -> BehaviourReport:
    source = [prose(i) for i in range(COUNT)]
    candidate = [changed.get(i, text) for i, text in enumerate(source)]
    return compare_answers(
        answers(source, "source"), answers(candidate, "candidate"), BehaviourSettings(margins=margins)
    )


def test_the_same_answers_drift_by_nothing_and_pass() -> None:
    report = compared({})

    assert report.verdict == "PASS"
    assert all(each.drift.estimate == 0 for each in report.checks)
    assert all(row.change == 0 for row in report.rows)
    # Tango's limit without a discordant item in closed form
    square = NormalDist().inv_cdf(0.95) ** 2
    assert check(report, "refusal").drift.high == pytest.approx(square / (COUNT + square))


def test_many_new_refusals_fail_and_the_report_says_which_check() -> None:
    report = compared(dict.fromkeys(range(30), REFUSAL))
    refusal = check(report, "refusal")

    assert (refusal.source, refusal.candidate, refusal.verdict) == (0.0, 0.3, "FAIL")
    # Nothing was gained, so Wilson's interval of 30 in 100 is close
    wilson = binomtest(30, COUNT).proportion_ci(0.9, method="wilson")
    assert (refusal.drift.low, refusal.drift.high) == pytest.approx((wilson.low, wilson.high), abs=0.01)
    assert report.verdict == "FAIL"
    assert "refusal +30.0 points" in report.reason
    assert "margin 10" in report.reason


def test_refusing_less_is_a_drift_too_and_repeating_less_is_none() -> None:
    bad = [REFUSAL if i < 30 else LOOP if i < 60 else prose(i) for i in range(COUNT)]
    good = [prose(i) for i in range(COUNT)]
    margins = BehaviourMargins(max_refusal_drift=0.1, max_repetition_drift=0.1)
    report = compare_answers(
        answers(bad, "source"), answers(good, "candidate"), BehaviourSettings(margins=margins)
    )

    assert check(report, "refusal").verdict == "FAIL"
    assert check(report, "repetition").drift.estimate == -0.3
    assert check(report, "repetition").verdict == "PASS"


def test_loops_count_as_repetition_and_a_drift_at_the_margin_is_undecided() -> None:
    report = compared(dict.fromkeys(range(10), LOOP), BehaviourMargins(max_repetition_drift=0.1))

    assert check(report, "repetition").verdict == "INCONCLUSIVE"
    assert report.verdict == "INCONCLUSIVE"


def test_length_is_a_factor_with_an_interval_that_fails_in_both_directions() -> None:
    twice = compared({i: f"{prose(i)} {prose(i + 1)}" for i in range(COUNT)})
    length = check(twice, "length")
    assert math.exp(length.drift.estimate) == pytest.approx(25 / 13)  # 24 and 12 words, and the end
    assert (length.source, length.candidate, length.verdict) == (12, 24, "FAIL")
    assert "length x 1.92" in describe(length)

    half = compared({i: " ".join(prose(i).split()[:6]) for i in range(COUNT)})
    assert check(half, "length").verdict == "FAIL"
    assert check(half, "length").drift.high < 0


def test_without_margins_drift_is_reported_and_nothing_is_decided() -> None:
    report = compared(dict.fromkeys(range(30), REFUSAL), BehaviourMargins())

    assert report.verdict is None
    assert {each.verdict for each in report.checks} == {None}
    assert check(report, "refusal").drift.low > 0.2


def test_failing_one_of_several_checks_needs_more_proof_than_failing_the_only_one() -> None:
    refusals = dict.fromkeys(range(16), REFUSAL)
    alone = compared(refusals, BehaviourMargins(max_refusal_drift=0.1))
    among = compared(refusals, MARGINS.model_copy(update={"max_length_drift_fraction": 9.0}))

    assert check(alone, "refusal").verdict == "FAIL"
    assert check(among, "refusal").verdict == "INCONCLUSIVE"
    assert check(alone, "refusal").drift == check(among, "refusal").drift


def test_several_tries_share_the_error_rate() -> None:
    source = answers([prose(i) for i in range(COUNT)], "source")
    once, thrice = (compare_answers(source, source, BehaviourSettings(), tries=n) for n in (1, 3))

    assert (once.alpha, thrice.alpha) == (0.05, pytest.approx(0.05 / 3))
    assert check(thrice, "refusal").drift.high > check(once, "refusal").drift.high


def test_format_is_judged_on_the_prompts_that_ask_for_one() -> None:
    asked = (*prompts(60)[:20], *prompts(60, expects="number")[20:])
    source = answers([str(i) for i in range(60)], "source", asked)
    candidate = answers([f"It is {i}" if 20 <= i < 40 else str(i) for i in range(60)], "candidate", asked)
    report = compare_answers(
        source, candidate, BehaviourSettings(margins=BehaviourMargins(max_format_loss=0.2))
    )
    lost = check(report, "format_lost")

    assert (lost.items, lost.source, lost.candidate, lost.verdict) == (40, 0.0, 0.5, "FAIL")


def test_language_and_changed_answers_are_told() -> None:
    report = compared({0: "東京は日本の首都です。", 1: "", 2: prose(3)})

    assert check(report, "language_changed").candidate == 0.01
    assert check(report, "off_language").candidate == 0.01
    assert check(report, "empty").candidate == 0.01
    assert check(report, "answer_changed").candidate == 0.03


def test_what_changed_most_comes_first() -> None:
    slightly = prose(7).replace("Number7", "Item")
    report = compared({7: slightly, 5: REFUSAL, 9: "東京は大きい " * 20})

    assert [row.prompt_id for row in report.rows[:3]] == ["p009", "p005", "p007"]
    assert report.rows[2].change < 0.2
    assert report.rows[3].change == 0


def test_answers_that_do_not_belong_together_are_refused() -> None:
    one, other = answers([prose(i) for i in range(60)], "a"), answers([prose(i) for i in range(61)], "b")
    with pytest.raises(BehaviourError, match="a and b answered other prompts"):
        compare_answers(one, other, BehaviourSettings())
    longer = one.model_copy(update={"max_new_tokens": 9})
    with pytest.raises(BehaviourError, match="another max_new_tokens"):
        compare_answers(one, longer, BehaviourSettings())
    fewer = one.model_copy(update={"rows": one.rows[1:]})
    with pytest.raises(BehaviourError, match="59 answers to 60 prompts"):
        compare_answers(one, fewer, BehaviourSettings())


@settings(max_examples=50)
@given(
    flags=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=60, max_size=90),
    margin=st.floats(0.01, 0.5),
)
def test_swapping_the_models_mirrors_the_interval(flags: list[tuple[bool, bool]], margin: float) -> None:
    def drift(source: int) -> CheckDrift:
        values = PairedValues(
            check="refusal",
            source=tuple(float(pair[source]) for pair in flags),
            candidate=tuple(float(pair[1 - source]) for pair in flags),
            clusters=tuple(map(str, range(len(flags)))),
            margin=margin,
            harm="either",
        )
        return drift_of(values, alpha=0.05, alpha_fail=0.05)

    one, other = drift(0), drift(1)
    assert one.drift.low == pytest.approx(-other.drift.high, abs=1e-9)
    assert one.verdict == other.verdict
    inside = -margin < one.drift.low and one.drift.high < margin
    assert (one.verdict == "PASS") == inside


def test_two_engines_one_after_the_other(tmp_path: Path) -> None:
    """A real tokenizer and two toy models, the second a noisy copy of the first."""
    folder = tiny_llama(tmp_path / "tiny").folder
    opened: list[FakeEngine] = []

    def opens(noise: float):
        def open_engine() -> FakeEngine:
            assert all(engine._closed for engine in opened), "two models in memory"
            opened.append(FakeEngine(EngineSettings(engine="openvino"), vocab_size=300, noise=noise))
            return opened[-1]

        return open_engine

    asked = BehaviourSettings(max_new_tokens=12)
    report = run_behaviour(opens(0.0), opens(1.0), folder, asked, candidate_name="noisy")
    again = run_behaviour(opens(0.0), opens(0.0), folder, asked)

    assert len(report.rows) == 128
    assert report.candidate == "noisy"
    assert check(report, "answer_changed").drift.low > 0.5
    assert check(again, "answer_changed").candidate == 0
    assert BehaviourReport.model_validate_json(report.model_dump_json()) == report


def test_records_of_answers_survive_the_store() -> None:
    made = answers([prose(i) for i in range(60)], "a")
    assert Answers.model_validate_json(made.model_dump_json()) == made
    assert made.prompts_digest != answers([prose(0)], "a").prompts_digest
