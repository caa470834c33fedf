"""The adapt stage where a goal is missed: the challenger, which meets all goals but diverges, with trained scales.

A recovered model must preserve the function and meets the whole gate.
"""

from configs.training import AdaptSettings, TrainingSettings
from configs.weights import WeightSettings
from tasks.adaptation.eight_bit import eight_bit_layers
from tasks.adaptation.model_card import model_card
from tasks.adaptation.recovery import recover
from tasks.compression.build import rounded_grids
from tasks.compression.error import CompressionError
from tasks.compression.openvino_matrices import MODEL_XML
from tasks.profiling.training_memory import TrainedScales
from tasks.release.autocast import decide_autocast
from tasks.release.candidate import Candidate
from tasks.release.judging import judge_candidate, screen_candidate
from tasks.release.measuring import make_candidate, measure_candidate
from tasks.release.stage_result import CandidateResult, StageResult
from tasks.release.training_data import TRAIN_PART, search_texts
from tasks.release.workspace import Workspace
from tasks.store.artifact import Artifact
from tasks.store.digest import digest_of
from tasks.store.store import Store
from tasks.training.log import TrainingLog
from tasks.training.memory_saving import predicted_mib, with_saving
from tasks.training.sealed import curve_csv, peak_metrics, trained, training_metrics

CARD = "recovered_scales.md"
CODE = ("tasks/adaptation", "tasks/compression/grid.py", "tasks/compression/layer_names.py")


def recover_challenger(workspace: Workspace, settings: AdaptSettings, challenger: Candidate) -> StageResult:
    """Train the scales of the challenger's integers, export in its format, judge by the whole gate.

    A challenger that GPTQ did not round is rounded by it first; where it cannot be, nothing is recovered, and the stage says why.

    Raises:
        TrainingError, EngineError, CompressionError, QualityError, StoreError: the stage cannot be completed.
    """
    if settings.recovery is None:
        raise ValueError("adapt.recovery is not configured")
    calibration = [section.text for section in workspace.splits.calibration]
    try:
        stored_as = grid_format(workspace.store, challenger)
        start = rounded_grids(
            workspace.store, workspace.source, challenger.engine.engine, stored_as, calibration
        )
    except CompressionError as error:
        return StageResult.skipped("adapt", f"{challenger.name} cannot be recovered: {error}")
    grids, log, training = _train(workspace, settings, settings.recovery, start)
    candidate = make_candidate(
        workspace, workspace.source, challenger.engine, stored_as, note=", recovered", grids=grids
    )
    measurement = measure_candidate(workspace, candidate)
    before, after = screen_candidate(workspace, challenger), screen_candidate(workspace, candidate)
    judged = judge_candidate(workspace, candidate, "preserve")
    means = _means(stored_as != challenger.format, log)
    nats = f"KL {before['kl_nats']:.4f} -> {after['kl_nats']:.4f} nats on the search split"
    return StageResult(
        stage="adapt",
        verdict=judged.verdict,
        kept=judged.verdict == "PASS",
        reason=f"{means}: {nats}; {judged.reason}",
        proposal=candidate,
        measurement=measurement,
        gate=judged.gate,
        candidates=(
            CandidateResult(name=candidate.name, candidate=candidate, measurement=measurement, screen=after),
        ),
        samples=judged.samples,
        provisional=judged.provisional,
        metrics=judged.metrics | _metrics(workspace, training, log),
        text=judged.text
        | {
            "training_recovery.csv": curve_csv(log),
            CARD: model_card(
                workspace.config.model.name,
                start.digest,
                TRAIN_PART,
                _texts(workspace),
                trained=stored_as,
                training=training,
                log=log,
            ),
        },
    )


def _train(
    workspace: Workspace, settings: AdaptSettings, asked: TrainingSettings, start: Artifact
) -> tuple[Artifact, TrainingLog, TrainingSettings]:
    """The grids with trained scales, the log, and what was trained with: `autocast` decided, memory saved."""
    training = decide_autocast(workspace, asked)
    texts, held_out = _texts(workspace), search_texts(workspace)
    recipe = {
        "step": "recover",
        "source": workspace.source.digest,
        "training": training.model_dump(mode="json"),
        "held_out": digest_of(list(held_out)),
        "max_memory_mib": settings.max_memory_mib,
    }
    grids, log = trained(
        workspace.store, workspace.derived, "grid", start, recipe, texts, training.seed, CODE,
        lambda out, scratch: recover(
            workspace.source, start.folder, texts, training, out, scratch, held_out, settings.max_memory_mib
        ),
    )  # fmt: skip
    return grids, log, with_saving(training, log.saving)


def _texts(workspace: Workspace) -> tuple[str, ...]:
    return tuple(section.text for section in workspace.splits.train)


def _metrics(workspace: Workspace, training: TrainingSettings, log: TrainingLog) -> dict[str, float]:
    scales = TrainedScales(log.trainable_parameters)
    predicted = predicted_mib(workspace.architecture, training, scales, log.saving)
    named = training_metrics("recovery", log) | peak_metrics("recovery", predicted, log)
    return {f"train/{name}": value for name, value in named.items()}


def _means(is_rounded: bool, log: TrainingLog) -> str:
    """What recovered the challenger, or did not."""
    if log.kept_step == 0:
        stand = "GPTQ's scales stand" if is_rounded else "its scales stand as they were"
        return f"no step of training lowered the divergence on held-out text, {stand}"
    return f"recovery by {'GPTQ and ' if is_rounded else ''}trained scales"


def grid_format(store: Store, challenger: Candidate) -> WeightSettings:
    """The challenger's format as one that is built from grids: its own, or GPTQ's where it was rounded in another way.

    Args:
        store: of its artifact, which says what NNCF kept at 8 bits.
        challenger: of a format without `recovery_objection`.
    """
    stored = challenger.format
    if stored.is_from_grids:
        return stored
    eight = stored.int8_layers
    if stored.int8_ratio:
        eight = tuple(sorted(eight_bit_layers(store.open(challenger.artifact).folder / MODEL_XML)))
    return stored.by_gptq(eight)
