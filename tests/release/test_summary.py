"""Metric names and signs of the contract, and the shape that `show --json` prints."""

import math

import pytest
from fake_rollout import BATCHED, RESULTS, evidence

from tasks.release.metrics import merge, metric_name, stage_metrics
from tasks.release.summary import compare_runs, compare_stages

CONTRACT = {
    "perf/decode_tokens_per_s",
    "perf/throughput_tokens_per_s",
    "perf/ttft_ms_p50",
    "perf/ttft_ms_p95",
    "perf/ttft_ms_p99",
    "perf/itl_ms_p50",
    "perf/itl_ms_p95",
    "perf/itl_ms_p99",
    "mem/weights_mib",
    "mem/kv_mib",
    "mem/peak_mib",
    "mem/predicted_mib",
    "quality/kl_nats",
    "quality/flip_rate",
    "quality/keiryo_last_word/acc",
    "quality/keiryo_last_word/acc_delta",
    "quality/keiryo_last_word/acc_ci_low",
    "quality/keiryo_last_word/acc_ci_high",
}


def test_a_gated_stage_has_every_metric_of_the_contract() -> None:
    assert stage_metrics(RESULTS[1]).keys() >= CONTRACT


def test_deltas_are_candidate_minus_source() -> None:
    metrics = stage_metrics(RESULTS[1])
    name = "quality/keiryo_last_word/acc"
    assert metrics[f"{name}_delta"] == pytest.approx(-0.004)  # it lost 0.4 points
    assert metrics[f"{name}_ci_low"] == pytest.approx(-0.015)
    assert metrics[f"{name}_ci_high"] == pytest.approx(0.007)
    assert metrics["quality/pydoc/perplexity_delta"] == pytest.approx(math.exp(0.0031) - 1)


def test_lm_eval_names_become_mlflow_names() -> None:
    assert metric_name("quality", "arc_easy", "acc,none") == "quality/arc_easy/acc"
    assert metric_name("quality", "a b(c)", "f1") == "quality/a_b_c_/f1"


def test_what_is_not_finite_or_ambiguous_is_refused() -> None:
    with pytest.raises(ValueError, match=r"perf/x is inf"):
        merge({"perf/x": math.inf})
    with pytest.raises(ValueError, match="claimed twice"):
        merge({"perf/x": 1.0}, {"perf/x": 2.0})


def test_the_summary_has_the_shape_of_show_json() -> None:
    document = evidence().summary.model_dump(mode="json")
    assert document.keys() >= {
        "run_id",
        "config",
        "verdict",
        "exit_code",
        "model",
        "stages",
        "release",
        "report",
        "seconds",
    }
    assert document["stages"][2].keys() == {
        "stage",
        "verdict",
        "kept",
        "engine",
        "artifact",
        "seconds",
        "cached",
        "metrics",
        "reason",
    }
    assert document["stages"][2]["artifact"] == BATCHED.artifact
    assert document["release"] == {"name": "tiny-llama", "version": 2, "artifact": BATCHED.artifact}
    assert document["exit_code"] == 0


def test_two_runs_side_by_side_with_intervals() -> None:
    first = evidence().summary
    second = first.model_copy(update={"stages": first.stages[:2]})
    rows = {(row.stage, row.metric): row for row in compare_runs(first, second)}
    same = rows["quantize", "quality/keiryo_last_word/acc_delta"]
    assert (same.first, same.first_interval) == (same.second, same.second_interval)
    assert same.first_interval == pytest.approx((-0.015, 0.007))
    assert rows["batching", "perf/throughput_tokens_per_s"].second is None


def test_two_stages_side_by_side() -> None:
    summary = evidence().summary
    rows = {row.metric: row for row in compare_stages(summary.stages[1], summary.stages[2])}
    assert rows["perf/throughput_tokens_per_s"].ratio == pytest.approx(545 / 470)
