"""Rules of thumb where nothing was measured, measurements where they exist."""

import pytest

from configs.engine import EngineSettings, SchedulerSettings
from tasks.profiling.recommend import recommend
from tasks.quality.verdict import GateVerdict
from tasks.release.candidate import Candidate
from tasks.release.stage_result import StageResult

GIB = 2**30


def stack(
    results=(), *, gib=12.0, latency_ms=100.0, priority="high", acceptance=0.6, parameters=7_000_000_000
):
    advice = recommend(
        parameters=parameters, memory_limit_bytes=int(gib * GIB), latency_ms=latency_ms,
        quality_priority=priority, draft_acceptance=acceptance, results=results,
    )  # fmt: skip
    return {item.aspect: item for item in advice}


def test_worked_example_of_the_rule():
    """A 7B model on 12 GiB, 100 ms, high priority, acceptance 0.6."""
    advice = stack()
    assert "INT4" in advice["precision"].choice
    assert advice["fine-tuning"].choice == "QLoRA"
    assert advice["serving"].choice == "continuous batching and speculative decoding"
    assert "judge" in advice["quality guard"].choice
    assert {item.source for item in advice.values()} == {"rule of thumb"}


@pytest.mark.parametrize(
    ("gib", "tuning"), [(15.99, "QLoRA"), (16.0, "LoRA, or full fine-tuning where required")]
)
def test_memory_threshold_of_seven_billion_is_16_gib(gib, tuning):
    assert stack(gib=gib)["fine-tuning"].choice == tuning


def test_a_small_model_does_not_need_four_bits_on_a_small_machine():
    assert "INT4" not in stack(parameters=135_000_000, gib=4)["precision"].choice


@pytest.mark.parametrize(("latency_ms", "acceptance"), [(None, 0.9), (120.0, 0.9), (100.0, 0.54)])
def test_speculation_is_optional_without_need_or_without_luck(latency_ms, acceptance):
    assert "optional" in stack(latency_ms=latency_ms, acceptance=acceptance)["serving"].choice


def result(stage, kept, verdict="PASS", flip_rate=0.02):
    engine = EngineSettings(
        engine="openvino", compute="bf16", kv_cache="u8", scheduler=SchedulerSettings(max_num_seqs=24)
    )
    return StageResult(
        stage=stage,
        verdict=verdict,
        kept=kept,
        reason=f"{stage} was measured",
        proposal=Candidate(
            name=f"{stage} proposal", artifact="0" * 64, engine=engine, weights="int8 asym per channel"
        ),
        gate=GateVerdict(verdict=verdict, reason="all within their margins", flip_rate=flip_rate),
    )


def test_measurements_speak_where_they_exist():
    advice = stack([result("quantize", True), result("batching", True)])
    assert advice["precision"].choice == "int8 asym per channel weights, u8 KV cache on openvino"
    assert advice["precision"].reason == "quantize was measured"
    assert "24 requests" in advice["serving"].choice
    assert "2.0%" in advice["quality guard"].reason
    assert advice["fine-tuning"].source == "rule of thumb"
    assert {advice[aspect].source for aspect in ("precision", "serving", "quality guard")} == {"measured"}


def test_what_failed_is_not_recommended():
    advice = stack([result("quantize", False, "FAIL"), result("adapt", False, "FAIL")])
    assert advice["precision"].choice == "keep the source's precision"
    assert advice["fine-tuning"].choice == "none of the methods tried"
    assert advice["quality guard"].source == "rule of thumb"


def test_an_error_is_no_measurement():
    assert stack([result("quantize", False, "ERROR")])["precision"].source == "rule of thumb"
