"""What one candidate takes, and whether that fits: memory while it serves and while it is built, disk, time.

Memory and disk are closed forms (`tasks/profiling`). Times are this machine's own where the store remembers a build of the same
format, else a table of rates, rough to a factor of two.
"""

from collections.abc import Sequence
from typing import Literal

from configs.engine import EngineSettings
from configs.schema import RequestSettings
from configs.weights import WeightSettings
from tasks.compression.build_cost import BuildCost
from tasks.models.checkpoint import Architecture
from tasks.profiling.build_memory import LIBRARIES_BYTES, candidate_phases, pairs_bytes, peak_bytes
from tasks.profiling.memory_budget import serving_budget
from tasks.profiling.weight_memory import weight_bytes
from tasks.quantization.long_context import long_engine, long_requests
from tasks.store.record import Record

MIB = 2**20
GIB = 2**30

OTHER_FILES_BYTES = 8 * MIB  # of an artifact: graph, tokenizer and detokenizer
SECONDS_A_GIB = {
    "export openvino": 30.0,
    "export onnxruntime": 12.0,
    "round openvino": 20.0,
    "round onnxruntime": 6.0,
    "calibrate openvino": 160.0,
    "calibrate onnxruntime": 160.0,
    "round vllm": 20.0,
    "calibrate vllm": 160.0,
}
"""Seconds a GiB of f32 weights, measured once on the 135 M demo model and two cores."""
SECOND_WALK = 0.7
"""Of a calibrated build, what a budget of bytes or nats adds: all layers are rounded once to learn what each loses, then again."""

OUTPUT_FEEDBACK = 1.0
"""Of a calibrated build, what feeding errors to other outputs adds to each walk."""


class Limits(Record):
    """What may be taken, MiB.

    Attributes:
        memory_mib: memory the machine has left.
        build_mib: memory a build may take; None: the same.
        disk_mib: free disk.
        gpu_mib: memory the GPU has left; None: there is none, or no candidate wants one.
    """

    memory_mib: float
    build_mib: float | None
    disk_mib: float
    gpu_mib: float | None = None


class CandidatePreflight(Record):
    """One declared weight format with one cache type.

    Attributes:
        name: as the stage will call it.
        weights_mib: weights of the artifact.
        kv_mib: KV cache of the configured requests, in whole blocks.
        activations_mib: intermediate values of the largest step.
        serving_mib: peak while it serves, for as long as it may, at the longest context that it is measured at.
        build_mib: peak while it is built, the export that it is made from included.
        needed_mib: memory that must be free: the larger peak, over the libraries where they are still to be loaded; what a GPU serves
            takes that of the GPU.
        disk_mib: its artifact and the export that it is made from; 0 where the store has it.
        seconds: to build it.
        seconds_from: what says so: the store has the artifact, this machine has built it before, or the table of rates.
        on_gpu: whether a GPU serves it.
        refused: why it cannot be taken, and what can be instead; None where it fits.
    """

    name: str
    weights_mib: float
    kv_mib: float
    activations_mib: float
    serving_mib: float
    build_mib: float
    needed_mib: float
    disk_mib: float
    seconds: float
    seconds_from: Literal["the store", "this machine", "rate table"]
    on_gpu: bool = False
    refused: str | None = None


def candidate_name(engine: EngineSettings, weights: WeightSettings) -> str:
    """What a candidate of the source is called."""
    return f"{engine.engine} {weights.label}, {engine.serving_label}"


def predict(
    architecture: Architecture,
    weights: WeightSettings,
    engine: EngineSettings,
    requests: RequestSettings,
    *,
    contexts: Sequence[int] = (),
    known: BuildCost | None = None,
    stored: bool = False,
) -> CandidatePreflight:
    """What one candidate takes.

    Args:
        architecture: of the source.
        weights: the format.
        engine: with the cache type.
        requests: that it serves.
        contexts: prompt lengths at which it is measured, too.
        known: an earlier build of the same here: what it took replaces the prediction.
        stored: whether its artifact is still in the store.
    """
    budget = serving_budget(architecture, weights, engine, requests)
    longest = (
        serving_budget(
            architecture, weights, long_engine(architecture, engine, tokens), long_requests(tokens)
        )
        for tokens in contexts
    )
    serving = max(each.endless_bytes for each in (budget, *longest))
    build = peak_bytes(candidate_phases(architecture, engine.engine, weights))
    disk = artifact_bytes(architecture, weights, engine)
    if weights.output_feedback:
        disk += pairs_bytes(architecture)
    if weights.bits != 32:
        disk += export_bytes(architecture, engine)
    seconds = build_seconds(architecture, weights, engine)
    if known is not None:
        build, seconds = int(known.peak_mib * MIB), known.seconds
    on_gpu = engine.device == "cuda"
    return CandidatePreflight(
        name=candidate_name(engine, weights),
        weights_mib=budget.weights_bytes / MIB,
        kv_mib=budget.kv_cache_bytes / MIB,
        activations_mib=budget.activations_bytes / MIB,
        serving_mib=serving / MIB,
        build_mib=build / MIB,
        needed_mib=(max(0 if on_gpu else serving, build) + LIBRARIES_BYTES[engine.engine]) / MIB,
        disk_mib=0 if stored else disk / MIB,
        seconds=0 if stored else seconds,
        seconds_from="the store" if stored else "rate table" if known is None else "this machine",
        on_gpu=on_gpu,
    )


def over_limit(predicted: CandidatePreflight, limits: Limits) -> str | None:
    """The first limit that a candidate breaks; None where it breaks none."""
    if limits.build_mib is not None and predicted.build_mib > limits.build_mib:
        return (
            f"building it takes {predicted.build_mib:.0f} MiB, quantize.max_build_mib is {limits.build_mib:g}"
        )
    if predicted.on_gpu and limits.gpu_mib is not None and predicted.serving_mib > limits.gpu_mib:
        return f"serving it needs {predicted.serving_mib:.0f} MiB of the GPU's memory, {limits.gpu_mib:.0f} are free"
    if predicted.needed_mib > limits.memory_mib:
        is_serving = predicted.serving_mib > predicted.build_mib and not predicted.on_gpu
        part = "serving" if is_serving else "building"
        return (
            f"{part} it needs {predicted.needed_mib:.0f} MiB of memory, {limits.memory_mib:.0f} are available"
        )
    if predicted.disk_mib > limits.disk_mib:
        return f"it needs {predicted.disk_mib:.0f} MiB of disk, {limits.disk_mib:.0f} are free"
    return None


def build_seconds(architecture: Architecture, weights: WeightSettings, engine: EngineSettings) -> float:
    """Rough time of a build, its export included, by the table of rates."""
    gib = 4 * architecture.parameters / GIB
    seconds = SECONDS_A_GIB.get(f"export {engine.engine}", 0.0)  # the checkpoint itself needs none
    if weights.bits != 32 and engine.engine != "transformers":
        kind = "calibrate" if weights.reads_text or weights.calibration in ("hqq", "k_quant") else "round"
        rate = SECONDS_A_GIB[f"{kind} {engine.engine}"]
        seconds += rate
        walks = 1
        if weights.max_bytes_fraction is not None or weights.max_rounding_nats is not None:
            seconds += SECOND_WALK * rate
            walks = 2
        if weights.output_feedback:
            seconds += walks * OUTPUT_FEEDBACK * rate
    return gib * seconds


def export_bytes(architecture: Architecture, engine: EngineSettings) -> int:
    """Disk of the f32 export that formats of an engine are made from; ONNX Runtime's passes with the build, vLLM needs none."""
    if engine.engine == "vllm":
        return 0
    return weight_bytes(architecture, WeightSettings(), engine.engine) + OTHER_FILES_BYTES


def artifact_bytes(architecture: Architecture, weights: WeightSettings, engine: EngineSettings) -> int:
    """Disk of the artifact itself."""
    return weight_bytes(architecture, weights, engine.engine) + OTHER_FILES_BYTES
