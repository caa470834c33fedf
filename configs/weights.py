"""How the weights of an artifact are stored: the declared space of weight compression."""

from typing import Literal

from pydantic import Field, model_validator

from configs.section import Section


class WeightSettings(Section):
    """One weight format. `bits: 32` is the exported model as it is."""

    bits: Literal[4, 8, 16, 32] = Field(32, description="bits a weight of the linear layers")
    symmetric: bool = Field(True, description="no zero point")
    group_size: int = Field(
        -1, ge=-1, description="weights sharing one scale; -1: one scale an output channel"
    )
    int8_ratio: float = Field(
        0.0, ge=0, le=1, description="bits 4: share of the weights kept at 8 bits, the most sensitive first"
    )
    embedding_bits: Literal[4, 8, 16, 32] = Field(
        8, description="bits of the token embedding and the output head"
    )
    calibration: Literal["none", "awq", "scale_estimation", "awq+scale_estimation", "gptq"] = Field(
        "none", description="how scales are found: round to nearest, or on the calibration text"
    )
    calibration_samples: int = Field(32, ge=1, description="sections of the calibration text that are used")

    @model_validator(mode="after")
    def _possible(self) -> "WeightSettings":
        if self.group_size in (0, 1):
            raise ValueError("group_size must be -1 (per channel) or at least 2")
        if self.bits != 4 and (self.int8_ratio or self.calibration != "none"):
            raise ValueError("int8_ratio and calibration act on bits: 4 only; leave them out")
        if self.bits in (16, 32) and self.group_size != -1:
            raise ValueError(f"group_size has no meaning with bits: {self.bits}; leave it out")
        return self

    @property
    def label(self) -> str:
        """Readable format: "f32", "int8 asym per channel", "int4 sym g64 awq 20 % int8"."""
        if self.bits in (16, 32):
            return f"f{self.bits}"
        group = "per channel" if self.group_size == -1 else f"g{self.group_size}"
        parts = [f"int{self.bits}", "sym" if self.symmetric else "asym", group]
        parts += [self.calibration] if self.calibration != "none" else []
        parts += [f"{self.int8_ratio:.0%} int8"] if self.int8_ratio else []
        return " ".join(parts)
