"""The quantize stage before anything runs: what every declared candidate will take, and which of them fit.

A candidate that does not fit is refused with the nearest cheaper option that does; the others go on. Where none fits, the whole
configuration is refused.

    preflight(workspace) -> Preflight       raises ConfigError (exit 2) where no candidate fits
    refusals(workspace) -> {name: reason}   for the stage: what it must not build
"""

import shutil
from collections.abc import Iterator, Sequence

import psutil

from configs.engine import EngineSettings
from configs.load import ConfigError
from configs.schema import Config
from configs.weights import WeightSettings
from tasks.compression.build_cost import expected_cost
from tasks.compression.error import CompressionError
from tasks.compression.source_grid import check_source_grid
from tasks.models.checkpoint import Architecture
from tasks.profiling.build_memory import pairs_bytes
from tasks.profiling.cache_memory import cache_token_bytes, kv_factor
from tasks.profiling.environment import memory_limit_bytes
from tasks.quantization.candidate_needs import (
    MIB,
    CandidatePreflight,
    Limits,
    artifact_bytes,
    export_bytes,
    over_limit,
    predict,
)
from tasks.quantization.long_context import check_contexts
from tasks.quantization.options import served
from tasks.release.workspace import Workspace
from tasks.serving.nvml import open_gpus
from tasks.store.digest import code_digest, digest_of
from tasks.store.record import Record
from tasks.store.store import Store

Declared = tuple[WeightSettings, EngineSettings]


class Preflight(Record):
    """The quantize stage before it runs.

    Attributes:
        limits: of the machine and the configuration.
        kv_factor: heads of the cache over query heads: 1 for MHA, below for GQA, 1 / heads for MQA.
        kv_token_bytes: cache bytes of one token over all layers, by the declared cache types.
        context_tokens: longest request of the list.
        candidates: in declared order.
        disk_mib: of all that fit; an export that several are made from is counted once.
        seconds: to build all that fit.
        spaces: how many candidates every declared space holds, in words.
    """

    limits: Limits
    kv_factor: float
    kv_token_bytes: dict[str, int]
    context_tokens: int
    candidates: tuple[CandidatePreflight, ...]
    disk_mib: float
    seconds: float
    spaces: tuple[str, ...] = ()


def machine_limits(config: Config, store: Store) -> Limits:
    """What this machine has left: memory for each worker, the control group's limit or what is available, whichever is less; disk.

    A GPU is asked only where a candidate wants one: the first that NVML lists.
    """
    memory = min(memory_limit_bytes(), int(psutil.virtual_memory().available))
    workers = config.quantize.parallel.workers if config.quantize and config.quantize.parallel.is_here else 1
    gpus = open_gpus() if any(engine.device == "cuda" for _, engine in _declared(config)) else []
    return Limits(
        memory_mib=memory // workers / MIB,
        gpu_mib=gpus[0].free_bytes() // workers / MIB if gpus else None,
        build_mib=config.quantize.max_build_mib if config.quantize else None,
        disk_mib=shutil.disk_usage(store.home).free / MIB,
    )


def preflight(workspace: Workspace, limits: Limits | None = None) -> Preflight:
    """Predict every declared candidate, and refuse what does not fit, or would not do what it says with this model.

    Args:
        workspace: of the rollout; its store is asked for remembered builds.
        limits: None: this machine's.

    Raises:
        ConfigError: no candidate fits, or a context is longer than the model's; one line that names the way out.
        ValueError: the shape of the model is not covered by the formulas.
    """
    config, architecture = workspace.config, workspace.architecture
    check_contexts(_contexts(workspace), architecture)
    limits = limits or machine_limits(config, workspace.store)
    declared = list(_declared(config))
    found = tuple(_predicted(workspace, weights, engine, limits) for weights, engine in declared)
    if found and all(said.refused is not None for said in found):
        least = min(found, key=lambda each: each.needed_mib)
        raise ConfigError(
            f"quantize.candidates and space: none of {len(found)} fits; {least.name}: {least.refused}"
        )
    seconds = {
        (e.engine, w): said.seconds for (w, e), said in zip(declared, found, strict=True) if not said.refused
    }
    missing = [
        each for each, said in zip(declared, found, strict=True) if said.refused is None and said.disk_mib
    ]
    disk_mib = _stage_disk_bytes(architecture, missing) / MIB
    if disk_mib > limits.disk_mib:
        least = min(found, key=lambda each: each.disk_mib)
        raise ConfigError(
            f"quantize.candidates and space: the artifacts of {len(missing)} candidates need {disk_mib:.0f} MiB of disk, "
            f"{limits.disk_mib:.0f} are free; {least.name} alone needs {least.disk_mib:.0f}: take fewer candidates, free "
            "some disk, or set KEIRYO_HOME to a larger one"
        )
    return Preflight(
        limits=limits,
        kv_factor=kv_factor(architecture.heads, architecture.kv_heads),
        kv_token_bytes={e.kv_cache: cache_token_bytes(architecture, e.kv_cache) for _, e in declared},
        context_tokens=config.requests.prompt_tokens + config.requests.max_new_tokens,
        candidates=found,
        disk_mib=disk_mib,
        seconds=sum(seconds.values()),
        spaces=tuple(space.said for space in config.quantize.space) if config.quantize else (),
    )


def refusals(workspace: Workspace, limits: Limits | None = None) -> dict[str, str]:
    """Why candidates must not be built, by name; those that fit are not in it.

    Raises:
        ConfigError: no candidate fits.
    """
    found = preflight(workspace, limits).candidates
    return {each.name: each.refused for each in found if each.refused is not None}


def cheaper_option(
    workspace: Workspace, weights: WeightSettings, engine: EngineSettings, limits: Limits
) -> str:
    """The nearest change that fits, as an advice; where none does, what would have to grow."""
    architecture, requests, contexts = workspace.architecture, workspace.config.requests, _contexts(workspace)
    least = predict(architecture, weights, engine, requests, contexts=contexts).needed_mib
    for advice, changed, other in _options(weights, engine):
        predicted = predict(architecture, changed, other, requests, contexts=contexts)
        if over_limit(predicted, limits) is None:
            return f"{advice} would fit, with {max(predicted.build_mib, predicted.serving_mib):.0f} MiB"
        least = min(least, predicted.needed_mib)
    return f"nothing cheaper fits either, the least needs {least:.0f} MiB: take a smaller model or a larger machine"


def _predicted(
    workspace: Workspace, weights: WeightSettings, engine: EngineSettings, limits: Limits
) -> CandidatePreflight:
    store = workspace.store
    known = expected_cost(store, workspace.source, engine.engine, weights)
    stored = known is not None and (store.home / "artifacts" / known.artifact).is_dir()
    predicted = predict(
        workspace.architecture, weights, engine, workspace.config.requests, contexts=_contexts(workspace), known=known,
        stored=stored,
    )  # fmt: skip
    over = over_limit(predicted, limits)
    if over is None:
        missing = _nothing_to_group(workspace.architecture, engine) or _no_source_grid(workspace, weights)
        return predicted.model_copy(update={"refused": missing})
    option = cheaper_option(workspace, weights, engine, limits)
    return predicted.model_copy(update={"refused": f"{over}; {option}"})


def _nothing_to_group(architecture: Architecture, engine: EngineSettings) -> str | None:
    """Why no layer's activations would be quantized; None where some are, or none should be."""
    widest = max(architecture.hidden, architecture.intermediate, architecture.heads * architecture.head_dim)
    if engine.activation_group <= widest:
        return None
    return (
        f"activation_group is {engine.activation_group}, and the widest input of a layer has {widest} values: OpenVINO would "
        "quantize no activation; use 32 or 64"
    )


class SourceGrid(Record):
    """Why a source has no grid of its own to keep; None where it has."""

    objection: str | None


def _no_source_grid(workspace: Workspace, weights: WeightSettings) -> str | None:
    """Why `calibration: source_grid` is not possible with this source, looked up once; None where it is, or is not asked for."""
    if weights.calibration != "source_grid":
        return None

    def look() -> SourceGrid:
        try:
            check_source_grid(workspace.source, weights.group_size)
        except CompressionError as error:
            return SourceGrid(objection=str(error))
        return SourceGrid(objection=None)

    key = digest_of([workspace.source.digest, weights.group_size, code_digest("tasks/compression")])
    return workspace.store.once(f"source-grid-{key}", SourceGrid, look)[0].objection


def _contexts(workspace: Workspace) -> tuple[int, ...]:
    return workspace.config.quantize.long_context_tokens if workspace.config.quantize else ()


def _declared(config: Config) -> Iterator[Declared]:
    settings = config.quantize
    if settings is None:
        return
    for declared in settings.declared:
        for engine in served(declared, settings, config.threads):
            yield declared.weights, engine


_UNCALIBRATED = {
    "calibration": "none", "output_feedback": False, "max_bytes_fraction": None, "max_rounding_nats": None,
    "activations": "float",
}  # fmt: skip


def _options(
    weights: WeightSettings, engine: EngineSettings
) -> Iterator[tuple[str, WeightSettings, EngineSettings]]:
    """Changes from the least to the furthest."""
    small = engine.model_copy(update={"scheduler": engine.scheduler.model_copy(update={"cache_mib": 64})})
    if engine.engine in ("openvino", "vllm") and engine.scheduler.cache_mib > 64:
        yield "quantize.scheduler.cache_mib: 64", weights, small
    plain = weights.model_copy(update=_UNCALIBRATED)
    if plain != weights:
        yield f"{plain.label} on {engine.engine}, which calibrates nothing,", plain, small
    four = plain.model_copy(update={"bits": 4, "group_size": plain.group_size if plain.bits == 4 else 32})
    if four != plain:
        yield f"{four.label} on {engine.engine}", four, small
    for name in ("onnxruntime", "openvino"):
        if name != engine.engine:
            other = EngineSettings(engine=name, threads=engine.threads, scheduler=small.scheduler)
            yield f"{four.label} on {name}", four, other


def _stage_disk_bytes(architecture: Architecture, missing: Sequence[Declared]) -> int:
    """Artifacts once, whatever cache they serve with, each engine's export once, and what output_feedback reads of each text."""
    artifacts = {
        (engine.engine, weights): artifact_bytes(architecture, weights, engine) for weights, engine in missing
    }
    exports = {
        engine.engine: export_bytes(architecture, engine) for weights, engine in missing if weights.bits != 32
    }
    pairs = {weights.calibration_samples for weights, _ in missing if weights.output_feedback}
    return sum(artifacts.values()) + sum(exports.values()) + len(pairs) * pairs_bytes(architecture)
