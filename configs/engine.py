"""Settings of an inference engine: what is served, and how."""

from typing import Literal

from pydantic import Field, model_validator

from configs.section import Section
from configs.speculation import WITHOUT_SPECULATION, Speculation

EngineName = Literal["transformers", "openvino", "onnxruntime", "vllm"]


class SchedulerSettings(Section):
    """How concurrent requests share the engine."""

    max_num_seqs: int = Field(
        32, ge=1, description="requests decoded together; transformers: the static batch size"
    )
    max_num_batched_tokens: int = Field(
        512, ge=16, description="tokens of one scheduler step, prompts and new ones"
    )
    cache_mib: int = Field(512, ge=16, description="KV cache reserved by a paged scheduler, MiB")
    prefix_caching: bool = Field(False, description="reuse the KV blocks of equal prompt prefixes")
    split_prefill: bool = Field(
        True, description="mix prompt chunks with decoding (OpenVINO: dynamic_split_fuse)"
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="compute threads of the engine alone; null: the recipe's. Not on engine: transformers",
    )


ACTIVATION_STEP = 16
"""Of a group of activations, on OpenVINO's CPU plugin (2026.4): with groups of 100 or 600 its logits are those without any."""


class EngineSettings(Section):
    """One engine configuration. With an artifact it makes a candidate."""

    engine: EngineName = Field(description="which inference engine")
    device: Literal["cpu", "cuda"] = Field(
        "cpu", description="what computes; cuda: one NVIDIA GPU (engine: transformers, vllm)"
    )
    compute: Literal["f32", "bf16"] = Field("f32", description="type of the arithmetic")
    kv_cache: Literal["f32", "bf16", "f16", "u8", "u4"] = Field(
        "f32", description="type in which keys and values are kept"
    )
    activation_group: int = Field(
        0,
        ge=0,
        description=(
            "activations quantized to int8 on the fly in groups of this size, a multiple of 16; wider ones are faster and cost "
            "quality; 0: not (OpenVINO)"
        ),
    )
    use_kv_cache: bool = Field(
        True, description="false: recompute the whole prefix for every token (to measure it)"
    )
    eager: bool = Field(
        False,
        description="true: without compiling the graph: it starts a minute sooner and decodes slower (vLLM)",
    )
    threads: int = Field(2, ge=1, description="compute threads")
    scheduler: SchedulerSettings = Field(SchedulerSettings(), description="batching of concurrent requests")
    speculation: Speculation | None = Field(
        None, description="tokens drafted ahead and checked in one pass; null: none (OpenVINO)"
    )

    @property
    def own_threads(self) -> int:
        """Compute threads of the engine; what else runs in its process has `threads`."""
        return self.scheduler.threads or self.threads

    @property
    def has_integer_cache(self) -> bool:
        """Whether keys and values are rounded to integers."""
        return self.kv_cache in ("u8", "u4")

    @property
    def serving_label(self) -> str:
        """What tells two configurations of one engine and artifact apart: "u8 cache", "u8 cache, bf16, activations g32"."""
        parts = [f"{self.kv_cache} cache"]
        parts += [self.compute] if self.compute != "f32" else []
        parts += [f"activations g{self.activation_group}"] if self.activation_group else []
        return ", ".join(parts)

    @model_validator(mode="after")
    def _possible(self) -> "EngineSettings":
        if not self.use_kv_cache and self.engine != "transformers":
            raise ValueError("use_kv_cache: false exists for engine: transformers only; leave it out")
        if self.device == "cuda" and self.engine not in ("transformers", "vllm"):
            raise ValueError(
                f"device: cuda is not offered by engine: {self.engine} in this version; use transformers or vllm, or device: cpu"
            )
        if self.scheduler.threads is not None and self.engine == "transformers":
            raise ValueError(
                "scheduler.threads is not offered by engine: transformers, which computes on the threads of its process; set threads"
            )
        if self.eager and self.engine != "vllm":
            raise ValueError("eager exists for engine: vllm only; leave it out")
        if self.activation_group and self.engine != "openvino":
            raise ValueError("activation_group exists for engine: openvino only; set it to 0")
        if self.activation_group % ACTIVATION_STEP:
            raise ValueError(
                f"activation_group is {self.activation_group}; OpenVINO quantizes activations in groups of a multiple of "
                f"{ACTIVATION_STEP} and leaves them as they are for any other; use 32 or 64"
            )
        if self.has_integer_cache and self.engine not in ("openvino", "onnxruntime"):
            raise ValueError(
                f"kv_cache: {self.kv_cache} is not offered by engine: {self.engine}; use openvino or onnxruntime, or "
                f"kv_cache: {self.compute}"
            )
        if self.speculation is not None and self.engine in WITHOUT_SPECULATION:
            raise ValueError(
                f"speculation is not offered by engine: {self.engine}: {WITHOUT_SPECULATION[self.engine]}; use openvino, "
                "or leave it out"
            )
        if self.engine == "openvino" and self.compute == "bf16" and self.kv_cache == "f32":
            raise ValueError("kv_cache: f32 is refused by OpenVINO with compute: bf16; use bf16 or u8")
        if self.engine == "openvino" and self.compute == "f32" and self.kv_cache == "bf16":
            raise ValueError("kv_cache: bf16 is refused by OpenVINO with compute: f32; use f32 or u8")
        return self
