"""What the quantize stage may choose from: candidates named one by one, and a product of settings.

A product holds combinations that do not exist (a zero point for NF4, an awq on ONNX Runtime). They are left out because they are
impossible, and for no other reason; how many are left is said. A setting that an engine does not have (groups of OpenVINO's
8-bit weights, activation groups of ONNX Runtime) takes its neutral value instead of making the engine impossible.
"""

import itertools
import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from configs.engine import EngineSettings
from configs.engine_formats import why_impossible
from configs.section import Section
from configs.weights import Calibration, WeightSettings

SpaceEngine = Literal["openvino", "onnxruntime"]
Compute = Literal["f32", "bf16"]
KvCache = Literal["f32", "bf16", "f16", "u8", "u4"]
Embedding = Literal[4, 8, 16, 32]

_SERVING = ("engine", "compute", "kv_cache", "activation_group")


class WeightCandidate(Section):
    """A weight format on an engine, with each KV-cache type."""

    engine: SpaceEngine | Literal["vllm"]
    weights: WeightSettings
    device: Literal["cpu", "cuda"] = Field("cpu", description="what serves it; cuda: one NVIDIA GPU (vLLM)")
    compute: Compute = "f32"
    activation_group: int = Field(
        0, ge=0, description="int8 activations in groups of this size, a multiple of 16 (OpenVINO)"
    )
    kv_cache: tuple[KvCache, ...] = Field(("f32",), min_length=1)

    @model_validator(mode="after")
    def _possible(self) -> "WeightCandidate":
        objection = self.weights.vllm_objection if self.engine == "vllm" else None
        if objection is not None:
            raise ValueError(objection)
        packed = self.weights.bits in (4, 8) and self.weights.activations == "float"
        if self.engine == "vllm" and packed and self.compute == "f32":
            raise ValueError(
                "engine: vllm multiplies packed weights in bf16 only; set compute: bf16 and kv_cache: [bf16]"
            )
        if self.device == "cuda" and self.engine != "vllm":
            raise ValueError(
                f"device: cuda is not offered by engine: {self.engine}; use vllm, or device: cpu"
            )
        for each in self.kv_cache:
            try:
                EngineSettings(
                    engine=self.engine, device=self.device, compute=self.compute, kv_cache=each,
                    activation_group=self.activation_group,
                )  # fmt: skip
            except ValidationError as error:
                raise ValueError(_said(error)) from error
        if self.activation_group and not self._takes_activation_groups:
            raise ValueError(
                f"activation_group is {self.activation_group} with {self.weights.label}; OpenVINO quantizes activations beside int8 "
                "weights, and beside int4 ones with integer zero points in groups that divide group_size; use one that does, or "
                "leave it out (compute: bf16 is faster where the processor has it)"
            )
        return self

    @property
    def _takes_activation_groups(self) -> bool:
        """Whether OpenVINO's CPU plugin (2026.4) quantizes activations beside the layers of such weights."""
        weights = self.weights
        if weights.bits != 4:
            return weights.bits == 8
        has_integers = weights.number == "int" and weights.calibration != "source_grid"
        return has_integers and (weights.group_size == -1 or weights.group_size % self.activation_group == 0)


class QuantizeSpace(Section):
    """Every combination of these values that is possible. The names are those of a candidate and of its weights."""

    engine: tuple[SpaceEngine, ...] = Field(("openvino", "onnxruntime"), min_length=1)
    bits: tuple[Literal[4, 8], ...] = Field((8, 4), min_length=1)
    number: tuple[Literal["int", "nf4"], ...] = Field(("int",), min_length=1)
    symmetric: tuple[bool, ...] = Field((True, False), min_length=1)
    group_size: tuple[int, ...] = Field((64,), min_length=1)
    calibration: tuple[Calibration, ...] = Field(("none",), min_length=1)
    output_feedback: tuple[bool, ...] = Field(
        (False,), min_length=1, description="gptq's at 4 bits; without meaning elsewhere"
    )
    int8_ratio: tuple[float, ...] = Field((0.0,), min_length=1, description="budgets at 8 bits, NNCF's")
    max_bytes_fraction: tuple[float | None, ...] = Field(
        (None,), min_length=1, description="budgets at 8 bits, gptq's, by bytes; null: none"
    )
    max_rounding_nats: tuple[float | None, ...] = Field(
        (None,), min_length=1, description="budgets at 8 bits, gptq's, by predicted divergence; null: none"
    )
    embedding_bits: tuple[Embedding, ...] = Field((8,), min_length=1)
    compute: tuple[Compute, ...] = Field(("f32",), min_length=1)
    kv_cache: tuple[KvCache, ...] = Field(("f32",), min_length=1)
    activation_group: tuple[int, ...] = Field((0,), min_length=1)
    calibration_samples: int = Field(
        32, ge=1, description="sections of calibration text, of every combination that calibrates"
    )

    @model_validator(mode="after")
    def _not_empty(self) -> "QuantizeSpace":
        if not self.candidates:
            raise ValueError(
                f"none of its {self.combinations} combinations is possible, the first because of {self._first_reason()}; widen a "
                "setting"
            )
        return self

    @property
    def combinations(self) -> int:
        """Of all values, the impossible ones included."""
        return math.prod(len(values) for values in self._axes().values())

    @property
    def said(self) -> str:
        """How large it is: "22 candidates, of 96 combinations"."""
        return f"{len(self.candidates)} candidates, of {self.combinations} combinations"

    @cached_property
    def candidates(self) -> tuple[WeightCandidate, ...]:
        """The possible combinations, each once, with one cache type each."""
        found = (each for each in self._tried() if isinstance(each, WeightCandidate))
        return tuple(dict.fromkeys(found))

    def _axes(self) -> dict[str, tuple[Any, ...]]:
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: axis for name, axis in values.items() if isinstance(axis, tuple)}

    def _tried(self) -> Iterator[WeightCandidate | str]:
        """Every combination as a candidate, or as the reason why there is none."""
        axes = self._axes()
        for values in itertools.product(*axes.values()):
            chosen = self._neutral(dict(zip(axes, values, strict=True)))
            serving = {name: chosen.pop(name) for name in _SERVING}
            try:
                weights = WeightSettings(**chosen)
                engine = EngineSettings(**serving)
                serving["kv_cache"] = (engine.kv_cache,)
                candidate = WeightCandidate(weights=weights, **serving)
            except ValidationError as error:
                yield _said(error)
                continue
            yield why_impossible(weights, engine) or candidate

    def _neutral(self, chosen: dict[str, Any]) -> dict[str, Any]:
        """The combination with the neutral value of every setting that has no meaning in it."""
        if chosen["calibration"] != "none":
            chosen |= {"calibration_samples": self.calibration_samples}
        if (chosen["bits"], chosen["calibration"]) != (4, "gptq"):
            chosen |= {"output_feedback": False}
        if chosen["engine"] == "openvino" and chosen["bits"] == 8:
            chosen |= {"group_size": -1}
        if chosen["engine"] == "onnxruntime":
            chosen |= {"activation_group": 0, "compute": "f32"}
        return chosen

    def _first_reason(self) -> str:
        return next(each for each in self._tried() if isinstance(each, str))


def _said(error: ValidationError) -> str:
    """The first of what pydantic objects to."""
    return error.errors()[0]["msg"].removeprefix("Value error, ")
