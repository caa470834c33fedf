"""Every branch of the flow on the FakeEngine: what passes is kept, what does not is rolled back, an error keeps nothing.

Engines, exports and training are replaced by their fakes; scoring, statistics, decisions, the store and MLflow are real. The flow runs
as a plain function: what Prefect adds is tested in test_prefect.py.
"""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from clockwork_stream import ClockworkStream, StillClock
from fake_engine import FakeEngine
from prefect.testing.utilities import prefect_test_harness
from tiny_llama import as_artifact, tiny_llama

import flows.rollout as rollout_module
from configs.load import ConfigError
from configs.training import TrainingSettings
from tasks.adaptation.adapter_parity import AdapterParity
from tasks.compression.error import CompressionError
from tasks.engines.protocol import EngineError
from tasks.models.checkpoint import read_architecture
from tasks.profiling.training_memory import TrainedScales
from tasks.quantization import run_off
from tasks.quantization.fan_out import ScreenJob
from tasks.release import alone, in_pairs, measuring
from tasks.release.stage_result import CandidateResult, StageResult
from tasks.release.summary import RolloutSummary
from tasks.serving.trace import TraceError
from tasks.store.store import Store
from tasks.tracking.runs import children
from tasks.tracking.store import open_tracking
from tasks.training.log import TrainingLog
from tasks.training.memory_saving import predicted_mib

CONFIG = """
name: branches
model: {{name: tiny, source: {{kind: folder, path: {model}}}}}
goals: {goals}
quality:
  margins: {{perplexity_fraction: 0.05, kl_nats: 0.05, accuracy: 0.2}}
  tasks: {{names: [keiryo_minimal_pairs], items: 200}}
  text: {{section_characters: 300, search_sections: 8}}
requests: {{count: 8, max_new_tokens: 12, min_new_tokens: 4, one_stream_new_tokens: 4, repeats: 1}}
profile: {{batch_sizes: [1], context_tokens: [8], new_tokens: 4}}
quantize: {{candidates: {candidates}, tries: {tries}, scheduler: {{max_num_seqs: 2}}}}
batching: {{schedulers: [{{max_num_seqs: 4}}, {{max_num_seqs: 64}}]}}
{more}
"""
INT8 = "{engine: openvino, weights: {bits: 8, symmetric: false}, kv_cache: [u8]}"
INT4 = "{engine: openvino, weights: {bits: 4, group_size: 32}, kv_cache: [u8]}"
NOISE = {"f32": 0.0, "int8 asym per channel": 0.05, "int4 sym g32": 1.5, "int4 sym g32 gptq": 1.5}
BYTES = {
    "f32": 4_000_000,
    "int8 asym per channel": 1_000_000,
    "int4 sym g32": 500_000,
    "int4 sym g32 gptq": 500_000,
}
LOG = TrainingLog(
    steps=2, tokens=64, seconds=1.0, tokens_per_s=64.0, losses=(3.0, 2.0), learning_rates=(1e-3, 0.0), peak_mib=1.0,
    trainable_parameters=10,
)  # fmt: skip

RECOVERING = {
    "candidates": f"{INT8}, {INT4}",
    "goals": "{max_weights_mib: 0.6}",
    "more": "adapt: {recovery: {steps: 2, autocast: none}}",
}
SAME = AdapterParity(merged_kl_nats=0.0, merged_flip_rate=0.0, exported_kl_nats=0.0, exported_flip_rate=0.0)


class PacedStream(ClockworkStream):
    """Takes real time, a millisecond a step."""

    def step(self):
        time.sleep(0.001)
        return super().step()


class World:
    """A tiny source model, and what is opened while rollouts run on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = root / "model"
        tiny_llama(self.model)
        self.opened = 0
        self.trained_noise = 0.02
        self.log = LOG
        self.break_engine: Callable[[str], bool] = lambda weights: False
        self.engine_class = FakeEngine

    def run(
        self,
        *,
        candidates: str,
        goals: str = "{}",
        more: str = "",
        tries: int = 1,
        overrides: tuple[str, ...] = (),
    ) -> RolloutSummary:
        recipe = self.root / "recipe.yaml"
        settings = {"candidates": f"[{candidates}]", "goals": goals, "more": more, "tries": tries}
        recipe.write_text(CONFIG.format(model=self.model, **settings))
        self.opened = 0
        state = rollout_module.rollout.fn(str(recipe), list(overrides))
        return RolloutSummary.model_validate(state.data)

    def build(self, store, checkpoint, engine, weights, calibration, *, integer_cache=False, grids=None):
        """A sealed folder that says how good the fake engine is that will open it."""
        if engine == "transformers":
            return checkpoint
        given = None if grids is None else grids.manifest.recipe["noise"]
        noise = NOISE[weights.label] + float(checkpoint.manifest.recipe.get("noise", 0.0))
        noise = noise if given is None else float(given)  # trained scales are as good as training made them

        def write(out: Path) -> None:
            for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
                (out / name).write_bytes((checkpoint.folder / name).read_bytes())

        recipe = {"noise": noise, "weights": weights.label}
        return store.seal(write, kind="openvino", parent=checkpoint.digest, recipe=recipe)

    def train(self, store, scratch, kind, parent, recipe, texts, seed, code, train):
        def write(out: Path) -> None:
            for file in self.model.iterdir():
                (out / file.name).write_bytes(file.read_bytes())

        noise = {"noise": self.trained_noise, "layers": 2, "step": recipe["step"]}
        return store.seal(write, kind=kind, parent=parent.digest, recipe=noise), self.log

    def merge(self, checkpoint, adapter, out):
        for file in self.model.iterdir():
            (out / file.name).write_bytes(file.read_bytes())

    def open(self, artifact, settings, **_):
        self.opened += 1
        label = str(artifact.manifest.recipe.get("weights", "f32"))
        fast = 1.0 if settings.engine == "transformers" else 6.0
        engine = self.engine_class(
            settings, vocab_size=300, noise=float(artifact.manifest.recipe.get("noise", 0.0)),
            tokens_per_s=10 * fast, weights_bytes=BYTES[label],
        )  # fmt: skip
        if self.break_engine(label):
            engine._logits_VV = engine._logits_VV * np.nan
        return engine


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Fakes in the places of engines, exports and training; a store and an MLflow of its own."""
    import tasks.adaptation.adapt as adapt
    import tasks.adaptation.recovered_challenger as recovered
    import tasks.distillation.stage as distillation
    import tasks.profiling.profile as profiling
    import tasks.quantization.search as search

    monkeypatch.setenv("KEIRYO_HOME", str(tmp_path / "store"))
    monkeypatch.setenv("KEIRYO_MLFLOW", str(tmp_path / "mlflow"))
    made = World(tmp_path)
    monkeypatch.setattr(measuring, "open_engine", made.open)
    monkeypatch.setattr(profiling, "open_engine", made.open)
    monkeypatch.setattr(alone, "open_engine", made.open)
    monkeypatch.setattr(alone, "import_engine", lambda engine: None)
    monkeypatch.setattr(measuring, "build_artifact", made.build)
    monkeypatch.setattr(measuring, "measured_build", lambda *what: what[-1]())
    # A fresh process would know nothing of the fakes; tests/release serves, tests/quantization reloads real artifacts.
    monkeypatch.setattr(measuring, "served_alone", alone.serve)
    monkeypatch.setattr(run_off, "ratios_in_pairs", in_pairs.serve_in_pairs)
    monkeypatch.setattr(search, "check_reloads", lambda workspace, candidates: {})
    monkeypatch.setattr(adapt, "trained", made.train)
    monkeypatch.setattr(recovered, "trained", made.train)
    monkeypatch.setattr(recovered, "rounded_grids", lambda store, checkpoint, *_: checkpoint)
    monkeypatch.setattr(adapt, "merge_adapter", made.merge)
    monkeypatch.setattr(adapt, "check_adapter", lambda *_: SAME)
    monkeypatch.setattr(distillation, "trained", made.train)
    for name in ("prepare", "profile_stage", "quantize_stage", "batching_stage", "adapt_stage", "distill_stage",
                 "close_rollout", "abandon_rollout"):  # fmt: skip
        monkeypatch.setattr(rollout_module, name, getattr(rollout_module, name).fn)
    return made


def verdicts(summary: RolloutSummary) -> dict[str, str]:
    return {stage.stage: stage.verdict for stage in summary.stages}


def kept(summary: RolloutSummary) -> list[str]:
    return [stage.stage for stage in summary.stages if stage.kept]


def test_a_good_candidate_is_released_and_the_same_again_computes_nothing(world):
    goals = "{max_weights_mib: 2, min_decode_speedup: 3}"
    address = os.environ.get("MLFLOW_TRACKING_URI")
    first = world.run(candidates=f"{INT8}, {INT4}", goals=goals)
    assert (first.verdict, first.exit_code) == ("PASS", 0)
    assert os.environ.get("MLFLOW_TRACKING_URI") == address  # or the next verb would read another store
    assert kept(first) == ["profile", "quantize", "batching"]
    assert first.release is not None
    assert verdicts(first)["adapt"] == verdicts(first)["distill"] == "SKIPPED"

    second = world.run(candidates=f"{INT8}, {INT4}", goals=goals)
    assert world.opened == 0
    assert all(stage.cached for stage in second.stages if stage.verdict != "SKIPPED")
    assert second.release == first.release


def test_one_changed_option_recomputes_only_what_is_downstream(world):
    world.run(candidates=INT8)
    changed = world.run(candidates=INT8, more="ledger: {blocks: 9}")
    assert all(stage.cached for stage in changed.stages if stage.verdict != "SKIPPED")
    assert world.opened > 0  # the closing measurement
    other = world.run(candidates=f"{INT8}, {INT4}")
    assert [stage.stage for stage in other.stages if stage.cached] == ["profile", "batching"]


def test_speculation_that_accepts_nothing_is_off_and_its_figures_stay(world, monkeypatch):
    """The fake engine makes one token a step whatever is asked of it: nothing is gained, nothing is surely faster."""
    speculating = CONFIG.replace("batching: {{", "batching: {{speculation: {{draft: null}}, ")
    monkeypatch.setitem(globals(), "CONFIG", speculating)
    summary = world.run(candidates=INT8)
    assert summary.verdict == "PASS"
    (batching,) = [stage for stage in summary.stages if stage.stage == "batching"]
    assert batching.kept  # for its scheduler
    assert batching.metrics["perf/speculation_on"] == 0
    assert batching.metrics["perf/speculation_prompt_lookup/acceptance"] == 0
    assert batching.metrics["perf/speculation_prompt_lookup/speedup"] == pytest.approx(1)
    assert batching.metrics["perf/speculation_prompt_lookup/requests_different"] == 0
    assert "speculation off" in batching.reason
    assert all(stage.cached for stage in world.run(candidates=INT8).stages if stage.verdict != "SKIPPED")


def test_a_bad_candidate_is_rolled_back(world):
    summary = world.run(candidates=INT4, goals="{max_weights_mib: 2}")
    assert (summary.verdict, summary.exit_code) == ("FAIL", 3)
    assert kept(summary) == ["profile"]
    assert summary.release is None
    assert "KL" in summary.reason


class FairOnlyWhileSearched(FakeEngine):
    """With a u8 cache good on the few sections of the search, and far off on the many of the gate."""

    asked = 0

    def score(self, requests, *, with_logits=False):
        for request in requests:
            self.asked += with_logits
            spoilt = self.asked > 8 and self.settings.kv_cache == "u8"
            disturbed = FakeEngine(self.settings, vocab_size=self.vocab_size, noise=1.5)
            yield from (disturbed if spoilt else super()).score([request], with_logits=with_logits)


BOTH_CACHES = "{engine: openvino, weights: {bits: 8, symmetric: false}, kv_cache: [u8, f32]}"


def test_where_the_best_does_not_pass_the_next_best_is_judged_if_that_is_declared(world):
    world.engine_class = FairOnlyWhileSearched
    assert world.run(candidates=BOTH_CACHES).verdict == "FAIL"
    summary = world.run(candidates=BOTH_CACHES, tries=2)
    assert summary.verdict == "PASS"
    quantize = next(stage for stage in summary.stages if stage.stage == "quantize")
    assert "f32 cache: all" in quantize.reason
    assert "u8 cache: FAIL" in quantize.reason


def test_who_is_faster_in_pairs_is_judged_first(world, monkeypatch):
    judged = []
    for seed, ratio in enumerate((0.5, 2.0)):  # other prompts: nothing is remembered of the run before
        monkeypatch.setattr(
            run_off, "ratios_in_pairs", lambda *_, ratio=ratio: in_pairs.Ratios(ratios=(ratio,))
        )
        summary = world.run(candidates=BOTH_CACHES, overrides=(f"requests.seed={seed}",))
        quantize = next(stage for stage in summary.stages if stage.stage == "quantize")
        judged.append(quantize.reason.split(":")[0])
    assert sorted(name.split(", ")[1] for name in judged) == ["f32 cache", "u8 cache"]


def test_a_text_that_fails_asks_no_task(world, caplog):
    caplog.set_level("INFO")
    assert world.run(candidates=INT4).verdict == "FAIL"
    assert not [line for line in caplog.messages if "items of keiryo" in line]


def test_a_clear_case_draws_no_more_items_than_it_needs(world, caplog):
    caplog.set_level("INFO")
    assert world.run(candidates=INT8).verdict == "PASS"
    drawn = {int(line.split(": ")[1].split()[0]) for line in caplog.messages if "items of keiryo" in line}
    assert min(drawn) == 50  # no look at fewer
    assert max(drawn) < 200


class RestlessEngine(FakeEngine):
    """Another model in small batches than in large ones."""

    def score(self, requests, *, with_logits=False):
        asked = list(requests)
        disturbed = FakeEngine(self.settings, vocab_size=self.vocab_size, noise=1.0)
        yield from (disturbed if len(asked) <= 5 else super()).score(asked, with_logits=with_logits)


def test_a_margin_within_the_noise_of_the_batch_size_is_refused(world):
    world.engine_class = RestlessEngine
    summary = world.run(candidates=INT8)
    assert (summary.verdict, summary.exit_code, summary.release) == ("ERROR", 1, None)
    assert "must be above the noise floor" in summary.reason


def test_the_source_itself_as_candidate_passes_with_no_divergence(world):
    """A/A through the whole rollout: f32 weights on the reference's own engine."""
    summary = world.run(candidates="{engine: openvino, weights: {bits: 32}, kv_cache: [f32]}")
    assert (summary.verdict, summary.exit_code) == ("PASS", 0)
    quantize = next(stage for stage in summary.stages if stage.stage == "quantize")
    assert quantize.metrics["quality/kl_nats"] == 0
    assert quantize.metrics["quality/flip_rate"] == 0


def test_edited_prompts_are_other_prompts(world, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    rows = [f'{{"prompt": "Say the number {number}."}}' for number in range(70)]
    prompts.write_text("\n".join(rows))
    asked = f"behaviour: {{prompts: {prompts}}}"
    assert world.run(candidates=INT8, more=asked).verdict == "PASS"
    prompts.write_text("\n".join([*rows[:-1], '{"prompt": "Say nothing."}']))
    again = world.run(candidates=INT8, more=asked)
    quantize = next(stage for stage in again.stages if stage.stage == "quantize")
    assert (again.verdict, quantize.cached) == ("PASS", False)


LOCAL_JUDGE = "{kind: local, engine: {engine: openvino}}"
JUDGE_THAT_IS_DOWN = "{kind: endpoint, base_url: 'http://127.0.0.1:9/v1', model: qwen3-32b, retries: 0}"


@pytest.mark.parametrize("provider", [LOCAL_JUDGE, JUDGE_THAT_IS_DOWN])
def test_a_judge_that_is_not_calibrated_has_no_vote(world, provider):
    summary = world.run(candidates=INT8, more=f"judge: {{provider: {provider}}}")
    assert summary.verdict == "PASS"
    quantize = next(stage for stage in summary.stages if stage.stage == "quantize")
    assert "has no vote" in quantize.reason


def test_a_goal_that_only_the_challenger_meets_starts_recovery(world):
    world.trained_noise = 1.5  # as bad as rounding made it
    summary = world.run(**RECOVERING)
    adapt = next(stage for stage in summary.stages if stage.stage == "adapt")
    assert adapt.reason.startswith("recovery by GPTQ and trained scales")
    assert adapt.verdict == "FAIL"
    assert (summary.verdict, summary.exit_code) == ("FAIL", 3)
    assert "max_weights_mib" in summary.reason


def test_a_challenger_that_trained_scales_win_back_is_released(world):
    summary = world.run(**RECOVERING)
    adapt = next(stage for stage in summary.stages if stage.stage == "adapt")
    assert (adapt.verdict, adapt.kept) == ("PASS", True)
    assert (summary.verdict, summary.exit_code) == ("PASS", 0)
    assert summary.release.artifact == adapt.artifact


def test_scales_that_training_did_not_better_are_told(world):
    world.log = LOG.model_copy(update={"held_out_losses": {0: 0.5, 2: 0.6}, "kept_step": 0})
    summary = world.run(**RECOVERING)
    adapt = next(stage for stage in summary.stages if stage.stage == "adapt")
    assert adapt.reason.startswith(
        "no step of training lowered the divergence on held-out text, GPTQ's scales stand"
    )


def test_curve_memory_and_card_of_a_recovery_are_in_mlflow(world):
    summary = world.run(**RECOVERING)
    tracking = open_tracking()
    parent = tracking.client.get_run(summary.run_id)
    (stage,) = [
        run
        for run in children(tracking, parent.info.experiment_id, summary.run_id)
        if run.info.run_name == "adapt"
    ]
    metrics = stage.data.metrics
    training = TrainingSettings(steps=2, autocast="none")
    shape = read_architecture(as_artifact(world.model))
    predicted = predicted_mib(shape, training, TrainedScales(LOG.trainable_parameters), LOG.saving)
    assert metrics["train/recovery/predicted_mib"] == pytest.approx(predicted)
    assert metrics["train/recovery/peak_error_fraction"] == pytest.approx(predicted / LOG.peak_mib - 1)
    files = Path(tracking.client.download_artifacts(stage.info.run_id, "text"))
    assert "with trained scales, of tiny" in (files / "recovered_scales.md").read_text()
    assert (files / "training_recovery.csv").read_text().splitlines()[1] == "1,3.0,0.001"


def test_a_challenger_that_gptq_cannot_round_is_not_recovered(world, monkeypatch):
    """What the quantize stage released stands: nothing of it depends on GPTQ."""
    import tasks.adaptation.recovered_challenger as recovered

    def fails(*_):
        raise CompressionError("the calibration text has 12 tokens")

    monkeypatch.setattr(recovered, "rounded_grids", fails)
    summary = world.run(**RECOVERING)
    adapt = next(stage for stage in summary.stages if stage.stage == "adapt")
    assert (adapt.verdict, adapt.kept) == ("SKIPPED", False)
    assert "cannot be recovered: the calibration text has 12 tokens" in adapt.reason
    assert (summary.verdict, summary.exit_code) == ("FAIL", 3)  # for its goal, which nothing meets


def test_distillation_runs_only_while_a_goal_is_missed(world):
    distill = "distill: {training: {steps: 2}}"
    met = world.run(candidates=INT8, goals="{max_weights_mib: 2}", more=distill)
    assert verdicts(met)["distill"] == "SKIPPED"
    missed = world.run(candidates=INT8, goals="{max_weights_mib: 0.6}", more=distill)
    assert verdicts(missed)["distill"] in ("INCONCLUSIVE", "FAIL")  # it is no better than its pruned start
    assert missed.exit_code == 3
    assert missed.release is None


def test_adaptation_that_does_not_pay_is_rolled_back(world):
    summary = world.run(candidates=INT8, more="adapt: {data: text, training: {steps: 2}}")
    assert verdicts(summary)["adapt"] == "INCONCLUSIVE"
    assert "adapt" not in kept(summary)
    assert summary.verdict == "PASS"  # the release is the one before


def test_batching_that_is_no_faster_is_not_kept(world):
    """Eight requests in two slots: four take half the steps, and three times as fast is asked."""
    asked = "batching: {schedulers: [{max_num_seqs: 4}], min_gain: 3}"
    summary = world.run(candidates=INT8, more=asked)
    batching = next(stage for stage in summary.stages if stage.stage == "batching")
    assert (batching.verdict, batching.kept) == ("FAIL", False)
    assert "more than 3 is asked" in batching.reason
    assert batching.metrics["perf/throughput_gain_ci_high"] <= 3
    assert summary.verdict == "PASS"  # the release of the stage before stands


def test_a_load_is_served_before_and_after(world, monkeypatch):
    """The fake server's steps take longer the fewer slots it has; its goodput decides."""
    import tasks.batching.contest as contest

    def served(workspace, candidate, sequence_tokens):
        slots = candidate.engine.scheduler.max_num_seqs
        return PacedStream(clock=StillClock(), slots=min(slots, 8))

    monkeypatch.setattr(contest, "open_served", served)
    load = (
        "load: {kind: closed, concurrency: 8, requests: 16, min_new_tokens: 4, max_new_tokens: 4, repeats: 2, "
        "min_prompt_tokens: 4, max_prompt_tokens: 8, slo: {ttft_ms: 1000, itl_ms: 1000}, saturation: {probes: 2}}"
    )
    summary = world.run(candidates=INT8, more=load)
    batching = next(stage for stage in summary.stages if stage.stage == "batching")
    assert batching.kept, batching.reason
    assert batching.metrics["perf/goodput_gain_ci_low"] > 1
    before, after = (
        batching.metrics[f"perf/{where}/goodput_requests_per_s"] for where in ("load_before", "load")
    )
    assert after > before
    assert "Under load</h2>" in Path(summary.report).read_text()
    again = world.run(candidates=INT8, more=load)
    assert next(stage for stage in again.stages if stage.stage == "batching").cached


def test_a_bad_trace_is_told_before_anything_runs(world, tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n0,5,many\n")
    with pytest.raises(TraceError, match="line 2, column GeneratedTokens: 'many'"):
        world.run(
            candidates=INT8, more=f"load: {{kind: trace, path: {trace}, slo: {{ttft_ms: 1, itl_ms: 1}}}}"
        )
    assert world.opened == 0


def test_nan_is_an_error_that_is_not_remembered(world):
    world.break_engine = lambda weights: weights.startswith("int8")
    broken = world.run(candidates=INT8)
    assert (broken.verdict, broken.exit_code) == ("ERROR", 1)
    assert broken.release is None
    world.break_engine = lambda weights: False
    assert world.run(candidates=INT8).verdict == "PASS"


def test_a_source_that_does_not_run_is_an_error_with_a_report(world, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise EngineError("the device is gone")

    monkeypatch.setattr(measuring, "open_engine", refuse)
    summary = world.run(candidates=INT8)
    assert (summary.verdict, summary.exit_code) == ("ERROR", 1)
    assert "the device is gone" in summary.reason
    assert summary.report is not None
    assert "the device is gone" in Path(summary.report).read_text()


def test_a_damaged_artifact_is_rebuilt_not_served(world, tmp_path):
    first = world.run(candidates=INT8)
    artifact = next(stage.artifact for stage in first.stages if stage.stage == "quantize")
    file = Store(tmp_path / "store").open(artifact).folder / "config.json"
    file.chmod(0o644)
    file.write_text("{}")
    again = world.run(candidates=INT8)
    assert again.verdict == "PASS"
    assert not next(stage for stage in again.stages if stage.stage == "quantize").cached
    assert Store(tmp_path / "store").open(artifact).digest == artifact


def quantize_results(world: World, monkeypatch: pytest.MonkeyPatch) -> list[StageResult]:
    """What the quantize stage returns, as the rollouts go."""
    stage, seen = rollout_module.quantize_stage, []

    def watched(*arguments: object) -> StageResult:
        seen.append(stage(*arguments))
        return seen[-1]

    monkeypatch.setattr(rollout_module, "quantize_stage", watched)
    return seen


def without_clock_and_memory(result: StageResult) -> dict[str, object]:
    """A stage's result less what no two runs agree on, fakes or not."""

    def strip(value: object) -> object:
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k not in ("seconds", "load_s", "peak_mib")}
        return [strip(each) for each in value] if isinstance(value, list) else value

    return strip(result.model_dump(mode="json"))


@pytest.mark.flow
def test_two_workers_of_the_task_runner_give_the_same_result(world, monkeypatch, tmp_path):
    import tasks.quantization.task as quantization
    from tasks.quantization.search import screen_one

    threads: list[str] = []

    def screened_here(job: ScreenJob) -> CandidateResult:
        threads.append(threading.current_thread().name)
        time.sleep(0.2)  # or the first would be done before the second is handed out
        return screen_one(job.workspace(), job.declared, job.engine)

    monkeypatch.setattr(quantization, "screened_alone", screened_here)
    seen = quantize_results(world, monkeypatch)
    world.break_engine = lambda weights: weights == "int4 sym g32"
    assert world.run(candidates=f"{INT8}, {INT4}", overrides=("threads=1",)).verdict == "PASS"
    assert threads == []
    monkeypatch.setenv("KEIRYO_HOME", str(tmp_path / "other store"))
    with prefect_test_harness(server_startup_timeout=120):
        side_by_side = world.run(
            candidates=f"{INT8}, {INT4}", overrides=("threads=1", "quantize.parallel.workers=2")
        )
    assert side_by_side.verdict == "PASS"
    assert len(threads) == len(set(threads)) == 2
    serial, parallel = (without_clock_and_memory(each) for each in seen)
    assert parallel == serial
    assert [bool(each["error"]) for each in parallel["candidates"]] == [False, True]


def test_how_many_workers_is_no_other_result(world, monkeypatch):
    seen = quantize_results(world, monkeypatch)
    world.run(candidates=INT8, overrides=("threads=1",))
    world.run(candidates=INT8, overrides=("threads=1", "quantize.parallel.workers=2"))
    assert [each.cached for each in seen] == [False, True]


def test_a_task_runner_that_cannot_work_is_refused_before_anything_runs(world):
    with pytest.raises(ConfigError, match="needs package prefect-dask"):
        world.run(candidates=INT8, overrides=("quantize.parallel.runner=dask",))
    assert world.opened == 0
