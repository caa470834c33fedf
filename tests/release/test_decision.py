"""The rules of a rollout, on records alone: goals, the choice, the challenger, what runs next, the verdict of the whole."""

import pytest
from fake_rollout import ADAPTED, BATCHED, INT4, INT8, MEASURED, RESULTS, SOURCE, tried

from configs.quality import Margins
from configs.schema import Goals
from configs.training import AdaptSettings, TrainingSettings
from configs.weights import WeightSettings
from tasks.release.decision import adaptation_purpose, challenger, missed_goals, overall, worth_judging
from tasks.release.progress import Progress
from tasks.release.stage_result import CandidateResult, StageResult

BASELINE = MEASURED[SOURCE.name]
BROKEN = CandidateResult(name="broken", candidate=None, measurement=None, error="out of memory")


def result(stage: str, verdict: str, kept: bool = False, **rest: object) -> StageResult:
    return StageResult(stage=stage, verdict=verdict, kept=kept, reason=f"{stage} said {verdict}", **rest)


@pytest.mark.parametrize(
    ("goals", "missed"),
    [
        ({}, 0),
        ({"max_weights_mib": 130}, 0),
        ({"max_weights_mib": 129}, 1),
        ({"min_decode_speedup": 6}, 0),  # 92 / 15.2 = 6.05
        ({"min_decode_speedup": 6.1}, 1),
        ({"min_throughput_speedup": 40, "max_itl_ms_p95": 1}, 2),
    ],
)
def test_goals_are_limits_on_the_measurement(goals, missed):
    assert len(missed_goals(Goals(**goals), MEASURED[INT8.name], BASELINE)) == missed


def test_the_fastest_within_the_margins_is_proposed():
    results = [tried(INT8, 0.004), tried(INT4, 0.3), BROKEN]
    assert _names(worth_judging(results, Goals(), Margins(), BASELINE)) == [INT8.name]


def test_the_next_best_within_the_margins_follow_by_speed():
    results = [tried(INT8, 0.004), tried(BATCHED, 0.004), tried(INT4, 0.3)]
    assert _names(worth_judging(results, Goals(), Margins(), BASELINE)) == [BATCHED.name, INT8.name]


def test_quality_comes_before_goals():
    """Only int4 is small enough, but it is far outside the margins: the gate must not be asked to pass it."""
    results = [tried(INT8, 0.004), tried(INT4, 0.3)]
    assert _names(worth_judging(results, Goals(max_weights_mib=100), Margins(), BASELINE)) == [INT8.name]


def test_without_a_good_one_the_least_bad_is_proposed():
    results = [tried(INT4, 0.3), tried(ADAPTED, 0.4), BROKEN]
    assert _names(worth_judging(results, Goals(), Margins(), BASELINE)) == [INT4.name]
    assert worth_judging([BROKEN], Goals(), Margins(), BASELINE) == ()


def _names(results):
    return [result.name for result in results]


def test_the_challenger_meets_the_goals_and_is_not_the_release():
    results = [tried(INT8, 0.004), tried(INT4, 0.3), BROKEN]
    assert challenger(results, INT8, Goals(max_weights_mib=100), BASELINE).candidate == INT4
    assert challenger(results, INT8, Goals(max_weights_mib=50), BASELINE) is None


RECOVERY = TrainingSettings()
PLAIN = INT4.model_copy(update={"format": WeightSettings(bits=4, group_size=32)})
OF_GPTQ = INT4.model_copy(update={"format": WeightSettings(bits=4, calibration="gptq")})
OF_NF4 = INT4.model_copy(update={"format": WeightSettings(bits=4, number="nf4")})
OF_GRID = INT4.model_copy(
    update={"format": WeightSettings(bits=4, symmetric=False, group_size=32, calibration="source_grid")}
)


def test_the_challenger_is_one_that_can_be_recovered_where_there_is_any():
    closer, further = tried(OF_NF4, 0.1), tried(PLAIN, 0.3)
    goals = Goals(max_weights_mib=100)
    assert challenger([closer, further], INT8, goals, BASELINE).candidate == PLAIN
    assert challenger([closer], INT8, goals, BASELINE).candidate == OF_NF4


@pytest.mark.parametrize(
    ("settings", "misses", "challenger", "purpose"),
    [
        (None, ("x",), INT4, None),
        (AdaptSettings(recovery=RECOVERY), ("max_weights_mib",), PLAIN, "recovery"),
        (AdaptSettings(recovery=RECOVERY), (), PLAIN, None),
        (AdaptSettings(recovery=RECOVERY), ("max_weights_mib",), None, None),
        (AdaptSettings(data="text", recovery=RECOVERY), (), INT4, "data"),
        (AdaptSettings(data="text"), ("max_weights_mib",), INT4, "data"),
        (AdaptSettings(data="text", recovery=RECOVERY), ("max_weights_mib",), OF_GPTQ, "recovery"),
        (AdaptSettings(recovery=RECOVERY), ("max_weights_mib",), OF_GRID, "recovery"),
        (AdaptSettings(data="text", recovery=RECOVERY), ("max_weights_mib",), OF_NF4, "data"),
        (AdaptSettings(recovery=RECOVERY), ("max_weights_mib",), OF_NF4, None),
    ],
)
def test_recovery_runs_only_for_a_missed_goal_with_a_challenger(settings, misses, challenger, purpose):
    assert adaptation_purpose(settings, misses, challenger)[0] == purpose


def test_what_is_not_recovered_says_why():
    _, why = adaptation_purpose(AdaptSettings(recovery=RECOVERY), ("max_weights_mib",), OF_NF4)
    assert why == (
        f"no data is given and of {INT4.name}, which meets all goals, nothing can be: nf4 per channel weights are no integers whose "
        "scales could be trained"
    )


@pytest.mark.parametrize(
    ("weights", "why"),
    [
        (WeightSettings(bits=4, group_size=32, int8_ratio=0.2, calibration="awq"), None),
        (WeightSettings(bits=8, symmetric=False), None),
        (WeightSettings(bits=16), "f16 weights are no integers"),
        (WeightSettings(bits=8, activations="int8_static"), "rounds more than the scales"),
        (WeightSettings(bits=4, group_size=32, embedding_bits=4), "rounds more than the scales"),
    ],
)
def test_what_scales_can_win_back_is_recovered(weights, why):
    assert (weights.recovery_objection is None) if why is None else why in weights.recovery_objection


PROFILE = RESULTS[0]


@pytest.mark.parametrize(
    ("verdicts", "changed", "missed", "verdict"),
    [
        (["PASS"], True, (), "PASS"),
        (["PASS"], True, ("goal",), "FAIL"),
        (["PASS", "FAIL"], True, (), "PASS"),  # a later stage that did not pay does not undo the release
        (["FAIL"], False, ("goal",), "FAIL"),
        (["FAIL"], False, (), "FAIL"),
        (["INCONCLUSIVE"], False, (), "INCONCLUSIVE"),
        (["INCONCLUSIVE"], False, ("goal",), "INCONCLUSIVE"),
        (["PASS", "ERROR"], True, (), "ERROR"),
        (["SKIPPED"], False, (), "PASS"),
        (["SKIPPED"], False, ("goal",), "FAIL"),
    ],
)
def test_the_verdict_of_the_whole_fails_closed(verdicts, changed, missed, verdict):
    names = ("quantize", "batching", "adapt", "distill")
    stages = [PROFILE, *(result(name, v) for name, v in zip(names, verdicts, strict=False))]
    assert overall(stages, changed, missed)[0] == verdict


def test_progress_moves_the_release_only_when_a_stage_is_kept():
    begun = Progress.begin(Goals(max_weights_mib=100), PROFILE)
    assert begun.release_is_source
    quantize = RESULTS[1]
    after = begun.after(quantize)
    assert after.release == INT8
    assert after.challenger == INT4
    assert after.missed  # 129.6 MiB
    failed = after.after(result("adapt", "FAIL", proposal=INT4, measurement=MEASURED[INT4.name]))
    assert failed.release == INT8
    assert failed.kept == (PROFILE, quantize)
    assert not failed.after(result("distill", "ERROR")).going
