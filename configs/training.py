"""Stages 4 and 5: training, the adapters and the student that are trained."""

import re
from typing import Literal

from pydantic import Field, model_validator

from configs.section import Section


class TrainingSettings(Section):
    """The part of training that adaptation and distillation share."""

    steps: int = Field(12, ge=1, description="optimizer steps")
    batch_sequences: int = Field(4, ge=1, description="packed sequences a step")
    sequence_tokens: int = Field(128, ge=16, description="tokens of a packed sequence")
    learning_rate: float = Field(5e-4, gt=0, description="peak; linear warm-up, then linearly to zero")
    warmup_fraction: float = Field(0.1, ge=0, lt=1)
    autocast: Literal["auto", "none", "bf16"] = Field(
        "auto",
        description="mixed precision; auto: bf16, but none where this machine multiplies float32 at least 1.2 times as fast",
    )
    optimizer_bits: Literal[32, 8] = Field(
        32, description="of AdamW's two moments; 8: in blocks of 256 with a scale each (bitsandbytes)"
    )
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
    b_rate_ratio: float = Field(
        1.0,
        ge=1,
        le=64,
        description="learning rate of the second matrix (B, which starts at zero) over that of the first (LoRA+); 1: plain",
    )
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
        """Readable and short: "lora", "qlora-loftq-rs", "lora-plus"."""
        parts = [
            self.method,
            "loftq" if self.init == "loftq" else "",
            "rs" if self.rank_stabilized else "",
            "plus" if self.b_rate_ratio > 1 else "",
        ]
        return "-".join(filter(None, parts))

    def adapts(self, layer: str) -> bool:
        """Whether a linear layer gets an adapter, by its whole name: "model.layers.0.mlp.up_proj"."""
        if isinstance(self.target_modules, str):
            return re.fullmatch(self.target_modules, layer) is not None
        return layer.rsplit(".", 1)[-1] in self.target_modules


class DatasetSource(Section):
    """Training rows of a dataset of the Hugging Face hub, or of a local folder of Parquet, JSON or CSV files."""

    dataset: str = Field(min_length=1, description="id on the hub, or a folder")
    config: str | None = Field(None, description="configuration (subset) of the dataset")
    split: str = Field("train", min_length=1, description="split, or a slice of one: 'train[:1000]'")
    revision: str = Field("main", description="branch, tag or commit on the hub")


class AdaptSettings(Section):
    """Stage 4: adapters on the user's data, and recovery of what quantization lost."""

    data: str | DatasetSource | None = Field(
        None,
        description=(
            "'text' (the train part of quality.text), a JSONL file or a dataset, whose rows have 'text' or chat 'messages'; null: none"
        ),
    )
    allow_leakage: bool = Field(
        False, description="train even on rows that repeat items of the gate; refused otherwise"
    )
    methods: tuple[LoraSettings, ...] = Field((LoraSettings(method="lora"),), min_length=1)
    max_memory_mib: float | None = Field(
        None,
        gt=0,
        description=(
            "most that training an adapter or recovery may add to the process, MiB: freed memory is given back at once, then "
            "activations are computed again, then it is refused; the rounding before recovery is not limited; null: the fastest way"
        ),
    )
    training: TrainingSettings = TrainingSettings()
    recovery: TrainingSettings | None = Field(
        None,
        description=(
            "training the scales of the challenger's integers, of GPTQ's where it was rounded otherwise, with the source as teacher "
            "(GPTQ's time and memory are then added to the stage; `keiryo plan` has its memory); null: off"
        ),
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
