"""A stage is computed once: its key is the digest of everything its result depends on."""

import logging
import time
from collections.abc import Callable
from typing import Any

from tasks.behaviour.error import BehaviourError
from tasks.compression.error import CompressionError
from tasks.data.text_error import TextError
from tasks.engines.protocol import EngineError
from tasks.judging.error import LabelError
from tasks.quality.noise_floor import MarginBelowNoise
from tasks.quality.pairing import SampleError
from tasks.quality.quality_error import QualityError
from tasks.release.machine import machine_digest
from tasks.release.stage_result import StageName, StageResult
from tasks.release.workspace import Workspace
from tasks.store.digest import code_digest, digest_of
from tasks.store.errors import DamagedArtifact, MissingArtifact, StoreError
from tasks.training.error import TrainingError

logger = logging.getLogger(__name__)

STAGE_FAILURES = (
    BehaviourError,
    CompressionError,
    EngineError,
    LabelError,
    MarginBelowNoise,
    QualityError,
    SampleError,
    StoreError,
    TextError,
    TrainingError,
    MemoryError,
)
"""What ends a stage with the verdict ERROR. Anything else is a defect of this program and ends the rollout."""

FOLDERS: dict[StageName, str] = {
    "profile": "tasks/profiling",
    "quantize": "tasks/quantization",
    "batching": "tasks/batching",
    "adapt": "tasks/adaptation",
    "distill": "tasks/distillation",
}
SHARED = (
    "behaviour",
    "compression",
    "data",
    "engines",
    "judging",
    "quality",
    "release",
    "serving",
    "training",
)


def remembered_stage(
    workspace: Workspace, stage: StageName, inputs: Any, compute: Callable[[], StageResult]
) -> StageResult:
    """The stage's result from the store, or computed now and remembered.

    Args:
        workspace: of the rollout.
        stage: which.
        inputs: every setting and every earlier record that the stage reads (JSON values, records).
        compute: the stage.

    Returns:
        The result; verdict ERROR when the stage failed. Errors are not remembered, nor are provisional results and those
        in which a candidate failed.
    """
    key = "-".join(
        [stage, digest_of([workspace.source.digest, workspace.items_digest, inputs, _surroundings(stage)])]
    )
    known = workspace.store.recall(key, StageResult)
    if known is not None and _sound(workspace, known):
        logger.info("%s: found in the store", stage)
        return known.model_copy(update={"cached": True})
    logger.info("%s: computing", stage)
    began_s = time.monotonic()
    try:
        result = compute()
    except STAGE_FAILURES as error:
        logger.exception("stage %s failed", stage)
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return StageResult(
            stage=stage, verdict="ERROR", kept=False, reason=reason, seconds=time.monotonic() - began_s
        )
    result = result.model_copy(update={"seconds": time.monotonic() - began_s})
    logger.info("%s: %s after %.0f s", stage, result.verdict, result.seconds)
    failed = result.verdict == "ERROR" or any(candidate.error for candidate in result.candidates)
    if not failed and not result.provisional:
        workspace.store.remember(key, result)
    return result


def _surroundings(stage: StageName) -> list[str]:
    return [code_digest(FOLDERS[stage], *(f"tasks/{name}" for name in SHARED)), machine_digest()]


def _sound(workspace: Workspace, result: StageResult) -> bool:
    """Whether the artifacts of a remembered result are still there, byte for byte."""
    if result.proposal is None:
        return True
    try:
        for artifact in result.proposal.artifacts:
            workspace.store.open(artifact)
    except (DamagedArtifact, MissingArtifact) as error:
        logger.warning("stage %s is computed again: %s", result.stage, error)
        return False
    return True
