"""The whole configuration of a rollout."""

import copy
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from configs.behaviour import BehaviourSettings, JudgeSettings
from configs.engine import EngineSettings, SchedulerSettings
from configs.load_profile import LoadSettings
from configs.model import ModelSettings
from configs.quality import REFERENCE, QualitySettings
from configs.quantize import QuantizeSettings
from configs.section import Section
from configs.speculation import SpeculationSearch
from configs.training import AdaptSettings, DatasetSource, DistillSettings, TrainingSettings
from configs.tuning import SchedulerGrid, TuningSettings


class Goals(Section):
    """Limits on resources. A goal left out always holds. Speed-ups are against the source model on `profile.baseline`."""

    max_weights_mib: float | None = Field(None, gt=0, description="weights of the release, MiB")
    max_peak_mib: float | None = Field(None, gt=0, description="peak memory while serving, MiB")
    min_decode_speedup: float | None = Field(None, gt=0, description="one stream, new tokens a second, ratio")
    min_throughput_speedup: float | None = Field(None, gt=0, description="all requests in flight, ratio")
    max_ttft_ms_p95: float | None = Field(None, gt=0, description="time to first token, one stream, ms")
    max_itl_ms_p95: float | None = Field(None, gt=0, description="inter-token latency, one stream, ms")


class RequestSettings(Section):
    """The request list that speed is measured on: prompts cut from the text, lengths drawn once by seed."""

    count: int = Field(32, ge=1, description="requests")
    prompt_tokens: int = Field(16, ge=1, description="prompt length of every request")
    min_new_tokens: int = Field(8, ge=2, description="shortest completion")
    max_new_tokens: int = Field(32, ge=2, description="longest completion")
    one_stream_new_tokens: int = Field(
        32, ge=4, description="completion length of the one-stream measurement"
    )
    repeats: int = Field(3, ge=1, description="times each is measured; medians are reported")
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _possible(self) -> "RequestSettings":
        if self.max_new_tokens < self.min_new_tokens:
            raise ValueError("max_new_tokens must not be below min_new_tokens")
        return self


_BASELINE = EngineSettings(engine="transformers", scheduler=SchedulerSettings(max_num_seqs=1))


class ProfileSettings(Section):
    """Stage 1: what the source model costs on the baseline engine."""

    baseline: EngineSettings = Field(
        _BASELINE, description="what speed-ups are measured against: requests one after another"
    )
    batch_sizes: tuple[int, ...] = Field((1, 8), min_length=1, description="batch sizes of the latency table")
    context_tokens: tuple[int, ...] = Field(
        (16, 256), min_length=1, description="prompt lengths of the latency table"
    )
    new_tokens: int = Field(12, ge=4, description="new tokens a measurement of the latency table")


class BatchingSettings(Section):
    """Stage 3: scheduler settings to try on the load, or on the request list where there is none."""

    schedulers: tuple[SchedulerSettings, ...] = Field((), description="settings to try")
    grid: SchedulerGrid | None = Field(None, description="further settings to try, as a grid; null: none")
    tuning: TuningSettings = TuningSettings()
    min_gain: float = Field(
        1.0,
        ge=1,
        description="ratio of throughput, or of goodput under a load, to the stage before that a proposal must exceed",
    )
    gate_blocks: int = Field(
        8,
        ge=4,
        description="ABBA blocks that decide on min_gain, two pairs each; fewer than 4 carry no interval",
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="two-sided, of the gain's interval")
    speculation: SpeculationSearch | None = Field(
        None, description="speculative decoding, tried on the quickest scheduler; null: not tried"
    )

    @model_validator(mode="after")
    def _possible(self) -> "BatchingSettings":
        if not self.tried:
            raise ValueError("there is nothing to try; give schedulers or grid")
        return self

    @property
    def tried(self) -> tuple[SchedulerSettings, ...]:
        """All settings to try, each once."""
        return tuple(dict.fromkeys((*self.schedulers, *(self.grid.settings() if self.grid else ()))))


class LedgerSettings(Section):
    """The closing interleaved measurement of every kept stage."""

    blocks: int = Field(8, ge=8, description="ABBA blocks; fewer do not carry the interval")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="two-sided, of each ratio")


class TrackingSettings(Section):
    """Where MLflow is."""

    uri: str | None = Field(
        None, description="MLflow server; null: the embedded SQLite store under mlflow/store"
    )


class Config(Section):
    """A rollout: a model, limits, margins and the stages to take. A stage left out is not taken."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="name of the recipe")
    model: ModelSettings
    threads: int = Field(
        2, ge=1, description="compute threads of every library; must be the threads of every engine"
    )
    goals: Goals = Goals()
    quality: QualitySettings = QualitySettings()
    behaviour: BehaviourSettings | None = Field(
        BehaviourSettings(), description="rule-based checks of what passes the gate; null: none"
    )
    judge: JudgeSettings | None = Field(
        None, description="a language model that compares the answers of `behaviour`, if it earns a vote"
    )
    requests: RequestSettings = RequestSettings()
    load: LoadSettings | None = Field(
        None, description="the load that the batching stage tunes for; null: `requests`, all at once"
    )
    profile: ProfileSettings = ProfileSettings()
    quantize: QuantizeSettings | None = None
    batching: BatchingSettings | None = None
    adapt: AdaptSettings | None = None
    distill: DistillSettings | None = None
    ledger: LedgerSettings = LedgerSettings()
    tracking: TrackingSettings = TrackingSettings()

    @model_validator(mode="before")
    @classmethod
    def _one_thread_count(cls, raw: Any) -> Any:
        """Engines that do not say otherwise compute with the threads of the whole rollout."""
        if not isinstance(raw, dict) or "threads" not in raw:
            return raw
        raw = copy.deepcopy(raw)
        defaults = {"profile": ("baseline", _BASELINE), "quality": ("reference", REFERENCE)}
        for section, (name, default) in defaults.items():
            inside = raw.setdefault(section, {})
            if isinstance(inside, dict):
                engine = inside.setdefault(name, default.model_dump())
                if isinstance(engine, dict):
                    engine["threads"] = raw["threads"]
        return raw

    @model_validator(mode="after")
    def _possible(self) -> "Config":
        if self.quantize is None and (self.batching or self.adapt or self.distill):
            raise ValueError(
                "batching, adapt and distill act on what quantize proposes; add a quantize section"
            )
        judging = {n: 1 for n in ("adapt", "distill") if getattr(self, n) is not None}
        if self.quantize is not None:
            judging = {"quantize": self.quantize.tries} | judging
        if self.quality.tries < sum(judging.values()):
            stages = ", ".join(f"{name} {count}" for name, count in judging.items())
            raise ValueError(
                f"quality.tries ({self.quality.tries}) must not be below the candidates that stages judge on the gate items "
                f"({stages}): alpha holds over all of them; raise tries to {sum(judging.values())}, lower quantize.tries, or take a "
                "stage out"
            )
        self._speculate_in_the_batching_stage_only()
        if self.judge is not None and self.behaviour is None:
            raise ValueError("judge compares the answers of behaviour; add a behaviour section")
        if self.quality.margins.accuracy is None and (self.distill or (self.adapt and self.adapt.data)):
            raise ValueError(
                "adapt.data and distill change the model on purpose and are judged on tasks; set quality.margins.accuracy"
            )
        return self

    def _speculate_in_the_batching_stage_only(self) -> None:
        engines = {"profile.baseline": self.profile.baseline, "quality.reference": self.quality.reference}
        if self.judge is not None and self.judge.provider.kind == "local":
            engines["judge.provider.engine"] = self.judge.provider.engine
        for name, engine in engines.items():
            if engine.speculation is not None:
                raise ValueError(
                    f"{name}.speculation is set; speculation is chosen and checked by batching.speculation, for the release; leave it "
                    "out here"
                )

    @property
    def possible_recovery(self) -> TrainingSettings | None:
        """How recovery trains; None where it is off, or no declared format can be recovered."""
        if self.adapt is None or self.quantize is None or not self.quantize.recoverable:
            return None
        return self.adapt.recovery

    @property
    def needs_hub(self) -> bool:
        """Whether the model, the tasks or the training rows come from the Hugging Face hub."""
        models = [self.model]
        if (
            self.judge is not None
            and self.judge.provider.kind == "local"
            and self.judge.provider.model is not None
        ):
            models.append(self.judge.provider.model)
        hub_tasks = self.quality.tasks.pack is None and self.quality.margins.accuracy is not None
        hub_rows = (
            self.adapt is not None
            and isinstance(self.adapt.data, DatasetSource)
            and not Path(self.adapt.data.dataset).is_dir()
        )
        return hub_tasks or hub_rows or any(model.source.kind == "hub" for model in models)
