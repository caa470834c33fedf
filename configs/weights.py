"""How the weights of an artifact are stored: the declared space of weight compression."""

from typing import Literal

from pydantic import Field, model_validator

from configs.section import Section

Calibration = Literal[
    "none",
    "gptq",
    "awq",
    "scale_estimation",
    "awq+scale_estimation",
    "lora_correction",
    "awq+scale_estimation+lora_correction",
    "nncf_gptq",
    "hqq",
    "k_quant",
    "source_grid",
]
"""How scales and integers are found; the field `calibration` says what each is."""

Activations = Literal["float", "int8_dynamic", "int8_static"]


class WeightSettings(Section):
    """One weight format. `bits: 32` is the exported model as it is."""

    bits: Literal[4, 8, 16, 32] = Field(32, description="bits a weight of the linear layers")
    number: Literal["int", "nf4"] = Field(
        "int", description="nf4: the 16 quantiles of a normal distribution (bits 4, OpenVINO)"
    )
    symmetric: bool = Field(True, description="no zero point")
    group_size: int = Field(
        -1, ge=-1, description="weights sharing one scale; -1: one scale an output channel"
    )
    int8_ratio: float = Field(
        0.0, ge=0, le=1, description="bits 4: share of the weights kept at 8 bits, the most sensitive first"
    )
    int8_layers: tuple[str, ...] = Field(
        (), description="bits 4: linear layers kept at 8 bits by name, 'model.layers.0.mlp.up_proj'"
    )
    max_bytes_fraction: float | None = Field(
        None,
        gt=0,
        lt=1,
        description=(
            "bits 4 with calibration gptq: as many layers at 8 bits, the most sensitive first, as keep all weights within this "
            "fraction of their float32 bytes"
        ),
    )
    max_rounding_nats: float | None = Field(
        None,
        gt=0,
        description=(
            "bits 4 with calibration gptq: the fewest layers at 8 bits with which the predicted divergence of rounding is at most "
            "this, nats a token"
        ),
    )
    embedding_bits: Literal[4, 8, 16, 32] = Field(
        8, description="bits of the token embedding and the output head"
    )
    calibration: Calibration = Field(
        "none",
        description=(
            "none: round to nearest; gptq: rounding error fed forward along each layer (any engine); hqq, k_quant: scales fitted "
            "to the weights alone (ONNX Runtime); awq, scale_estimation, lora_correction, nncf_gptq: NNCF's (OpenVINO); source_grid: "
            "none is looked for: a source that was rounded to 4 bits before, as a GGUF is, keeps its own integers (OpenVINO, ONNX "
            "Runtime; needs its groups, most often 32; layers on no grid get 8 bits)"
        ),
    )
    output_feedback: bool = Field(
        False,
        description=(
            "bits 4 with calibration gptq: what rounding loses in some outputs of a layer is made good by its other outputs, too "
            "(YAQA), for a longer build: of the demo model 17 % less divergence with all layers at 4 bits, 5 % within 18 % of the bytes"
        ),
    )
    calibration_samples: int = Field(32, ge=1, description="sections of the calibration text that are used")
    activations: Activations = Field(
        "float",
        description=(
            "what the stored graph does to activations: int8_static: scales from the calibration text; int8_dynamic: from each "
            "input (ONNX Runtime, vLLM; OpenVINO's own on-the-fly kind is the engine's activation_group)"
        ),
    )

    @model_validator(mode="after")
    def _possible(self) -> "WeightSettings":
        if self.group_size in (0, 1):
            raise ValueError("group_size must be -1 (per channel) or at least 2")
        if self.bits != 4 and (self.int8_ratio or self.int8_layers):
            raise ValueError("int8_ratio and int8_layers act on bits: 4 only; leave them out")
        eight = ("int8_ratio", "int8_layers", "max_bytes_fraction", "max_rounding_nats")
        if len(given := [name for name in eight if getattr(self, name)]) > 1:
            raise ValueError(f"{' and '.join(given)} each say what stays at 8 bits; give one of them")
        if (self.max_bytes_fraction or self.max_rounding_nats) and (self.bits, self.calibration) != (
            4,
            "gptq",
        ):
            raise ValueError(
                "max_bytes_fraction and max_rounding_nats go with bits: 4 and calibration: gptq; set both"
            )
        if self.output_feedback and (self.bits, self.calibration) != (4, "gptq"):
            raise ValueError(
                "output_feedback goes with bits: 4 and calibration: gptq; set both, or leave it out"
            )
        if self.int8_ratio and self.calibration == "gptq":
            raise ValueError(
                "int8_ratio is NNCF's; with calibration: gptq use max_bytes_fraction or max_rounding_nats"
            )
        if self.calibration == "source_grid" and not self._is_plain_int4:
            raise ValueError(
                "calibration: source_grid keeps integers of 4 bits with zero points; set bits: 4, symmetric: false and a group_size of "
                "16 or more; leave number, int8_ratio and activations out"
            )
        if self.bits not in (4, 8) and self.calibration != "none":
            raise ValueError("calibration acts on bits: 4 and 8 only; leave it out")
        if self.bits == 8 and self.calibration not in ("none", "gptq"):
            raise ValueError(f"calibration: {self.calibration} acts on bits: 4 only; use none or gptq")
        if self.bits in (16, 32) and self.group_size != -1:
            raise ValueError(f"group_size has no meaning with bits: {self.bits}; leave it out")
        if self.number == "nf4" and (self.bits != 4 or not self.symmetric):
            raise ValueError("number: nf4 is a symmetric 4-bit format; set bits: 4 and symmetric: true")
        if self.calibration == "gptq" and (self.number == "nf4" or self.activations != "float"):
            raise ValueError(
                "calibration: gptq rounds weights to integers and nothing else; leave number and activations out"
            )
        if self.activations != "float" and self.bits != 8:
            raise ValueError(
                f"activations: {self.activations} goes with bits: 8; set it, or activations: float"
            )
        return self

    @property
    def _is_plain_int4(self) -> bool:
        is_int4 = self.bits == 4 and self.number == "int" and not self.symmetric and self.group_size >= 16
        return is_int4 and not self.int8_ratio and self.activations == "float"

    @property
    def is_from_grids(self) -> bool:
        """Whether layers are rounded before an engine's builder sees them."""
        return self.calibration in ("gptq", "source_grid")

    @property
    def reads_text(self) -> bool:
        """Whether scales or integers depend on the calibration text."""
        by_text = self.calibration not in ("none", "hqq", "k_quant", "source_grid")
        return by_text or self.activations == "int8_static"

    @property
    def for_trained_weights(self) -> "WeightSettings":
        """The format for a model whose weights were trained: they left the source's grid and are all rounded to one of its size."""
        if self.calibration != "source_grid":
            return self
        return self.model_copy(update={"calibration": "gptq", "int8_layers": ()})

    def by_gptq(self, int8_layers: tuple[str, ...] = ()) -> "WeightSettings":
        """The same integers and groups, found by GPTQ; what another way kept at 8 bits has to be named."""
        changed = {"calibration": "gptq", "int8_ratio": 0.0, "int8_layers": int8_layers}
        return WeightSettings.model_validate(self.model_dump() | changed)

    @property
    def recovery_objection(self) -> str | None:
        """Why training cannot win back what this format loses; None where it can: it trains the scales of integers."""
        if self.bits not in (4, 8) or self.number != "int":
            return f"{self.label} weights are no integers whose scales could be trained"
        if self.activations != "float" or self.embedding_bits == 4:
            return f"{self.label} rounds more than the scales of its linear layers could win back"
        return None

    @property
    def vllm_objection(self) -> str | None:
        """Why vLLM's integer kernels do not take this format, with the way out; None where they do."""
        if self.bits in (16, 32):
            return None
        mixed = ("int8_ratio", "int8_layers", "max_bytes_fraction", "max_rounding_nats")
        if given := [name for name in mixed if getattr(self, name)]:
            return (
                f"engine: vllm computes q, k and v, and gate and up, as one matrix of one format; leave {given[0]} out, or use engine: "
                "openvino"
            )
        if self.number != "int" or not self.symmetric:
            return "engine: vllm takes symmetric integers; set symmetric: true and leave number out"
        if self.activations == "int8_static":
            return "engine: vllm rounds activations with a scale for each token; use activations: int8_dynamic, or float"
        if self.activations == "int8_dynamic" and self.group_size != -1:
            return f"group_size is {self.group_size}; engine: vllm multiplies int8 by int8 per channel only; set it to -1"
        if self.calibration not in ("none", "gptq"):
            return f"calibration: {self.calibration} is made for another engine; with engine: vllm use none or gptq"
        if self.group_size not in (-1, 32, 64, 128):
            return f"group_size is {self.group_size}; engine: vllm has kernels for 32, 64, 128 and -1 (per channel)"
        if self.embedding_bits not in (16, 32):
            return f"embedding_bits is {self.embedding_bits}; engine: vllm keeps the token embedding at 16 or 32; set it"
        return None

    @property
    def label(self) -> str:
        """Readable format: "f32", "int8 asym per channel", "int4 sym g64 awq 20 % int8"."""
        if self.bits in (16, 32):
            return f"f{self.bits}"
        group = "per channel" if self.group_size == -1 else f"g{self.group_size}"
        kind = "nf4" if self.number == "nf4" else f"int{self.bits} {'sym' if self.symmetric else 'asym'}"
        parts = [kind, group]
        parts += [self.calibration] if self.calibration != "none" else []
        parts += ["with output feedback"] if self.output_feedback else []
        parts += [f"{self.int8_ratio:.0%} int8"] if self.int8_ratio else []
        parts += [f"{len(self.int8_layers)} layers int8"] if self.int8_layers else []
        parts += [f"within {self.max_bytes_fraction:.0%} of f32"] if self.max_bytes_fraction else []
        parts += [f"within {self.max_rounding_nats:g} nats"] if self.max_rounding_nats else []
        parts += [f"embedding {self.embedding_bits}"] if self.embedding_bits != 8 else []
        parts += [f"{self.activations} activations"] if self.activations != "float" else []
        return " ".join(parts)
