from datetime import date
from functools import cache

import pytest
from answers import answers, prose
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from configs.behaviour import BehaviourSettings, SpotCheckSettings
from tasks.behaviour.report import compare_answers
from tasks.behaviour.rows import PromptRow
from tasks.judging.error import DecisionError
from tasks.judging.spot_check import SpotCheckDecision, blinded_pairs, check_decision, decision_stands

LIMITS = SpotCheckSettings(max_valid_days=30)
DECISION = {
    "approver": "Ada",
    "decision": "approve",
    "artifact": "a" * 64,
    "reason": "the changes are harmless",
    "decided_on": date(2026, 3, 1),
    "expires_on": date(2026, 3, 31),
}


@cache
def rows() -> tuple[PromptRow, ...]:
    source = [prose(i) for i in range(64)]
    changed = [" ".join(text.split()[: 12 - i // 4]) if i < 20 else text for i, text in enumerate(source)]
    return compare_answers(answers(source, "a"), answers(changed, "b"), BehaviourSettings()).rows


@settings(deadline=None)
@given(count=st.integers(1, 70), seed=st.integers(0, 999))
def test_the_pairs_are_what_changed_most_and_the_key_undoes_the_blinding(count: int, seed: int) -> None:
    table = rows()
    by_id = {row.prompt_id: row for row in table}
    pairs, key = blinded_pairs(table, count, seed)

    assert len(pairs) == len(key.prompt_ids) == min(count, sum(row.change > 0 for row in table))
    left_out = [row.change for row in table if row.prompt_id not in key.prompt_ids]
    assert min(by_id[i].change for i in key.prompt_ids) >= max(left_out, default=0)
    for pair, prompt, side in zip(pairs, key.prompt_ids, key.candidate_is, strict=True):
        shown = {"A": pair.answer_a, "B": pair.answer_b}
        assert shown[side] == by_id[prompt].candidate_text
        assert shown["B" if side == "A" else "A"] == by_id[prompt].source_text
    assert (pairs, key) == blinded_pairs(table, count, seed)


def test_sides_and_order_tell_nothing() -> None:
    sides = [side for seed in range(200) for side in blinded_pairs(rows(), 12, seed)[1].candidate_is]
    assert 0.45 < sides.count("A") / len(sides) < 0.55
    firsts = {blinded_pairs(rows(), 12, seed)[1].prompt_ids[0] for seed in range(50)}
    assert len(firsts) > 5
    assert not any(
        "id" in name or "model" in name for name in type(blinded_pairs(rows(), 1, 0)[0][0]).model_fields
    )


@pytest.mark.parametrize(
    "change",
    [
        {"approver": ""},
        {"approver": "  "},
        {"reason": ""},
        {"decision": "maybe"},
        {"artifact": "abc"},
        {"expires_on": DECISION["decided_on"]},
    ],
)
def test_a_decision_is_signed_reasoned_and_expires(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SpotCheckDecision.model_validate({**DECISION, **change})
    with pytest.raises(ValidationError):
        SpotCheckDecision.model_validate({k: v for k, v in DECISION.items() if k not in change})


def test_a_decision_stands_for_its_artifact_until_it_expires() -> None:
    decision = SpotCheckDecision.model_validate(DECISION)
    stands = [
        decision_stands(decision, day, "a" * 64, LIMITS)
        for day in (date(2026, 2, 28), date(2026, 3, 1), date(2026, 3, 31), date(2026, 4, 1))
    ]

    assert stands == [False, True, True, False]
    assert not decision_stands(decision, date(2026, 3, 2), "b" * 64, LIMITS)
    check_decision(decision, LIMITS)


def test_a_decision_that_would_stand_too_long_is_refused_and_does_not_stand() -> None:
    decision = SpotCheckDecision.model_validate({**DECISION, "expires_on": date(2026, 4, 1)})

    with pytest.raises(DecisionError, match="31 days after decided_on; at most 30"):
        check_decision(decision, LIMITS)
    assert not decision_stands(decision, date(2026, 3, 2), "a" * 64, LIMITS)
