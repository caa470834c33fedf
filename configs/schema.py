"""The whole configuration of a rollout."""

import copy
import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from configs.behaviour import BehaviourSettings, JudgeSettings
from configs.engine import EngineSettings, SchedulerSettings
from configs.load_profile import LoadSettings
from configs.model import ModelSettings
from configs.quality import REFERENCE, QualitySettings
from configs.section import Section
from configs.space import QuantizeSpace, WeightCandidate
from configs.speculation import SpeculationSearch
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


class ParallelSettings(Section):
    """Who builds and screens candidates. Speed and memory are always measured one at a time, by the rollout's own process."""

    runner: Literal["threads", "dask", "ray"] = Field(
        "threads",
        description="Prefect's task runner; dask, ray: package prefect-dask or prefect-ray, and a Prefect server in PREFECT_API_URL",
    )
    workers: int = Field(
        1, ge=1, description="candidates at a time, each in a process with `threads` threads"
    )
    address: str | None = Field(
        None,
        min_length=1,
        description="running Dask scheduler or Ray cluster, whose workers see the store; null: on this machine",
    )

    @model_validator(mode="after")
    def _possible(self) -> "ParallelSettings":
        if self.address is not None and self.runner == "threads":
            raise ValueError("address is that of a cluster; set runner to dask or ray, or leave it out")
        return self

    @property
    def is_serial(self) -> bool:
        """One candidate after another in the rollout's own process."""
        return self.runner == "threads" and self.workers == 1

    @property
    def is_here(self) -> bool:
        """Whether the workers share this machine."""
        return self.address is None


class QuantizeSettings(Section):
    """Stage 2."""

    candidates: tuple[WeightCandidate, ...] = Field((), description="named one by one")
    space: tuple[QuantizeSpace, ...] = Field(
        (), description="products of settings, searched beside the candidates; one alone needs no list"
    )
    scheduler: SchedulerSettings = SchedulerSettings()
    tries: int = Field(
        1,
        ge=1,
        description="candidates judged on the gate items, the next best where one does not pass; each is one of quality.tries",
    )
    budget_minutes: float | None = Field(
        None, gt=0, description="no further candidate is begun after this time; null: all that are worth it"
    )
    max_build_mib: float | None = Field(
        None, gt=0, description="memory that a build may take, MiB; null: what the machine has left"
    )
    parallel: ParallelSettings = ParallelSettings()
    long_context_tokens: tuple[int, ...] = Field(
        (),
        description=(
            "prompt lengths at which what survives the screen is measured once more, one stream with 16 new tokens, each cache type "
            "beside the others; none: it is not"
        ),
    )

    @field_validator("long_context_tokens")
    @classmethod
    def _lengths(cls, contexts: tuple[int, ...]) -> tuple[int, ...]:
        if any(tokens < 1 for tokens in contexts) or len(set(contexts)) < len(contexts):
            raise ValueError("prompt lengths are above 0 and each is given once")
        return contexts

    @field_validator("space", mode="before")
    @classmethod
    def _one_or_more(cls, raw: Any) -> Any:
        return () if raw is None else (raw,) if isinstance(raw, dict) else raw

    @model_validator(mode="after")
    def _something_to_try(self) -> "QuantizeSettings":
        if not self.candidates and not self.space:
            raise ValueError("nothing to try; give candidates, a space, or both")
        return self

    @property
    def declared(self) -> tuple[WeightCandidate, ...]:
        """The candidates, then those of the space that are not among them, one cache type each."""
        named = (
            each.model_copy(update={"kv_cache": (kv_cache,)})
            for each in self.candidates
            for kv_cache in each.kv_cache
        )
        return tuple(dict.fromkeys([*named, *(each for space in self.space for each in space.candidates)]))


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


class TrainingSettings(Section):
    """The part of training that adaptation and distillation share."""

    steps: int = Field(12, ge=1, description="optimizer steps")
    batch_sequences: int = Field(4, ge=1, description="packed sequences a step")
    sequence_tokens: int = Field(128, ge=16, description="tokens of a packed sequence")
    learning_rate: float = Field(5e-4, gt=0, description="peak; linear warm-up, then cosine to zero")
    warmup_fraction: float = Field(0.1, ge=0, lt=1)
    autocast: Literal["none", "bf16"] = Field("bf16", description="mixed precision")
    checkpoint_steps: int = Field(
        5, ge=1, description="a kill loses at most this many steps; the held-out loss is looked at as often"
    )
    patience: int | None = Field(
        3, ge=1, description="training ends after so many looks without a lower held-out loss; null: never"
    )
    seed: int = Field(0, ge=0)


class LoraSettings(Section):
    """One low-rank adapter."""

    method: Literal["lora", "qlora", "dora"] = Field(
        description="qlora: the base is held in NF4, double quantization"
    )
    rank: int = Field(16, ge=1)
    alpha: float = Field(32, gt=0, description="scale is alpha / rank")
    rank_stabilized: bool = Field(False, description="scale is alpha / sqrt(rank) instead")
    init: Literal["zero", "loftq"] = Field(
        "zero",
        description="zero: the adapter starts without effect; loftq: at the best low-rank repair of what NF4 lost (qlora)",
    )
    target_modules: tuple[str, ...] | str = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="names of linear layers, or a regular expression for whole names: '.*layers.[0-9].mlp.*'",
    )
    kernels: Literal["none", "compile", "liger", "unsloth"] = Field(
        "none",
        description="compile: decoder layers through torch.compile; liger, unsloth: their kernels (CUDA, packages of their own)",
    )

    @model_validator(mode="after")
    def _possible(self) -> "LoraSettings":
        if self.init == "loftq" and self.method != "qlora":
            raise ValueError("init: loftq repairs what NF4 lost; it goes with method: qlora")
        if isinstance(self.target_modules, str):
            try:
                re.compile(self.target_modules)
            except re.error as error:
                raise ValueError(
                    f"target_modules {self.target_modules!r} is no regular expression ({error}); give one, or a list of names"
                ) from error
        return self

    @property
    def scale(self) -> float:
        """What the product of the two matrices is multiplied with."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilized else self.rank)

    @property
    def label(self) -> str:
        """Readable and short: "lora", "qlora-loftq-rs"."""
        parts = [self.method, "loftq" if self.init == "loftq" else "", "rs" if self.rank_stabilized else ""]
        return "-".join(filter(None, parts))

    def adapts(self, layer: str) -> bool:
        """Whether a linear layer gets an adapter, by its whole name: "model.layers.0.mlp.up_proj"."""
        if isinstance(self.target_modules, str):
            return re.fullmatch(self.target_modules, layer) is not None
        return layer.rsplit(".", 1)[-1] in self.target_modules


class AdaptSettings(Section):
    """Stage 4: adapters on the user's data, and recovery of what quantization lost."""

    data: str | None = Field(
        None,
        description="'text' (the train part of quality.text) or a JSONL file ('text' or chat 'messages'); null: none",
    )
    methods: tuple[LoraSettings, ...] = Field((LoraSettings(method="lora"),), min_length=1)
    training: TrainingSettings = TrainingSettings()
    recovery: TrainingSettings | None = Field(
        None,
        description="training against the challenger's rounded weights with the source as teacher; null: off",
    )


class DistillSettings(Section):
    """Stage 5: a shallower student from the teacher's logits."""

    layers_fraction: float = Field(0.75, gt=0, le=0.75, description="layers the student keeps")
    temperature: float = Field(
        2.0, gt=0, description="T: softens both distributions; the soft loss is scaled by T^2"
    )
    alpha: float = Field(
        0.2, ge=0, le=1, description="weight of the hard cross-entropy; 1 - alpha for the soft loss"
    )
    training: TrainingSettings = TrainingSettings()


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
    def needs_hub(self) -> bool:
        """Whether the model or the tasks come from the Hugging Face hub."""
        models = [self.model]
        if (
            self.judge is not None
            and self.judge.provider.kind == "local"
            and self.judge.provider.model is not None
        ):
            models.append(self.judge.provider.model)
        hub_tasks = self.quality.tasks.pack is None and self.quality.margins.accuracy is not None
        return hub_tasks or any(model.source.kind == "hub" for model in models)
