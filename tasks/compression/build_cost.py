"""What making an artifact cost, beside what the closed forms said of it.

A cost is remembered under the artifact's digest and under what was asked for, so that a cached artifact keeps its figures and the
next preflight can use them.
"""

import importlib
import logging
import time
from collections.abc import Callable, Collection, Sequence

from configs.engine import EngineName
from configs.weights import WeightSettings
from tasks.compression.openvino_graph import was_exchanged
from tasks.models.checkpoint import read_architecture
from tasks.models.errors import ModelSourceError
from tasks.profiling.build_memory import (
    BuildPhase,
    PhaseName,
    build_phases,
    candidate_phases,
    exchanged_phases,
    peak_bytes,
    text_tokens,
)
from tasks.profiling.environment import environment
from tasks.serving.memory_peak import MemoryPeak
from tasks.store.artifact import Artifact
from tasks.store.digest import code_digest, digest_of
from tasks.store.record import Record
from tasks.store.store import ArtifactRef, Store

logger = logging.getLogger(__name__)

_MIB = 2**20
_GPTQ_PHASES: tuple[PhaseName, ...] = ("importance", "grids")
_BUILDERS: dict[EngineName, tuple[str, ...]] = {
    "openvino": ("torch", "transformers", "nncf", "openvino_tokenizers", "optimum.exporters.openvino"),
    "onnxruntime": ("torch", "transformers", "onnx_ir", "onnxruntime", "onnxruntime_genai"),
    "vllm": ("torch", "transformers", "safetensors.torch"),
}


class BuildCost(Record):
    """The making of an artifact, and of what it is derived from where that was not there yet.

    Attributes:
        artifact: its address.
        seconds: wall time.
        peak_mib: largest growth of resident memory over the process with its libraries imported, MiB.
        predicted_mib: what the closed forms say of that; None for a shape that they do not cover.
    """

    artifact: str
    seconds: float
    peak_mib: float
    predicted_mib: float | None

    @property
    def error_fraction(self) -> float | None:
        """(predicted - measured) / measured."""
        if self.predicted_mib is None or self.peak_mib <= 0:
            return None
        return self.predicted_mib / self.peak_mib - 1


def measured_build(
    store: Store,
    checkpoint: Artifact,
    engine: EngineName,
    weights: WeightSettings,
    calibration: Sequence[str],
    build: Callable[[], Artifact],
) -> Artifact:
    """What `build` returns; where that had to be made, what it cost is remembered.

    Args:
        store: of the artifact and its cost.
        checkpoint: the artifact's source, at whatever remove.
        engine: the artifact is for.
        weights: its format.
        calibration: texts that the format may use.
        build: builds and seals the artifact with whatever it is derived from, or finds it in the store.
    """
    if engine not in _BUILDERS:
        return build()
    asked = _asked_key(checkpoint, engine, weights)
    with store.lock(asked):  # who waits for another process's build has no cost of its own
        known = store.recall(asked, BuildCost) or store.recall(f"found-{asked}", ArtifactRef)
        if known is not None and known.artifact in _sealed(store):
            return build()
        for module in _BUILDERS[engine]:
            importlib.import_module(module)  # its code is not the artifact's
        before, began_s = _sealed(store), time.monotonic()
        with MemoryPeak() as peak:
            artifact = build()
        seconds = time.monotonic() - began_s
        made = _lineage(store, artifact) & (_sealed(store) - before)
        if (
            not made
        ):  # a by-product of another build, as a rule: looking costs a second, and is not done again
            store.remember(f"found-{asked}", ArtifactRef(artifact=artifact.digest))
            return artifact
        phases_of = candidate_phases if len(made) > 1 else build_phases
        exported = engine == "openvino" and (len(made) > 1 or weights.bits == 32)
        if exported and was_exchanged(store, checkpoint):
            phases_of = exchanged_phases
        grids = artifact.manifest.data.get("grids")
        is_rounded_before = grids is not None and grids not in made
        cost = BuildCost(
            artifact=artifact.digest,
            seconds=seconds,
            peak_mib=peak.growth_bytes / _MIB,
            predicted_mib=_predicted_mib(
                phases_of, checkpoint, engine, weights, calibration, _GPTQ_PHASES if is_rounded_before else ()
            ),
        )
        store.remember(f"build-cost-{artifact.digest}", cost)
        store.remember(asked, cost)
    error = cost.error_fraction
    logger.info(
        "  built %s for %s in %.1f s, peak %.0f MiB%s", weights.label, engine, cost.seconds, cost.peak_mib,
        "" if error is None else f" (predicted {cost.predicted_mib:.0f}, {error:+.0%})",
    )  # fmt: skip
    return artifact


def build_cost(store: Store, artifact: str) -> BuildCost | None:
    """What an artifact cost; None where it was not built here."""
    return store.recall(f"build-cost-{artifact}", BuildCost)


def expected_cost(
    store: Store, checkpoint: Artifact, engine: EngineName, weights: WeightSettings
) -> BuildCost | None:
    """What the last build of this format from this checkpoint cost here; None where there was none."""
    return store.recall(_asked_key(checkpoint, engine, weights), BuildCost)


def build_metrics(cost: BuildCost | None) -> dict[str, float]:
    """A cost under the names of the MLflow contract; nothing of what was not built here."""
    if cost is None:
        return {}
    metrics = {"mem/build_peak_mib": cost.peak_mib, "time/build_s": cost.seconds}
    if cost.predicted_mib is not None:
        metrics["mem/build_predicted_mib"] = cost.predicted_mib
    if cost.error_fraction is not None:
        metrics["mem/build_error_fraction"] = cost.error_fraction
    return metrics


def _asked_key(checkpoint: Artifact, engine: EngineName, weights: WeightSettings) -> str:
    code = code_digest("tasks/compression")
    return f"build-cost-{digest_of([checkpoint.digest, engine, weights, code, environment()])}"


def _sealed(store: Store) -> frozenset[str]:
    return frozenset(path.name for path in (store.home / "artifacts").iterdir())


def _lineage(store: Store, artifact: Artifact) -> frozenset[str]:
    """An artifact and what it was derived from: other processes seal theirs meanwhile."""
    found: set[str] = set()
    address: str | None = artifact.digest
    while address is not None and address in _sealed(store):
        found.add(address)
        manifest = store.open(address).manifest
        found |= {manifest.data["grids"]} if "grids" in manifest.data else set()
        address = manifest.parent
    return frozenset(found)


def _predicted_mib(
    phases_of: Callable[..., tuple[BuildPhase, ...]],
    checkpoint: Artifact,
    engine: EngineName,
    weights: WeightSettings,
    calibration: Sequence[str],
    left_out: Collection[PhaseName],
) -> float | None:
    tokens = text_tokens(calibration[: weights.calibration_samples])
    try:
        phases = phases_of(read_architecture(checkpoint), engine, weights, calibration_tokens=tokens)
    except (ModelSourceError, ValueError) as error:
        logger.warning("the memory of building %s was not predicted: %s", weights.label, error)
        return None
    return peak_bytes(tuple(phase for phase in phases if phase.name not in left_out)) / _MIB
