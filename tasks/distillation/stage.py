"""The distill stage: a shallower student from the teacher's logits, exported as the release is, judged on tasks.

Training has to beat doing nothing: the student's held-out loss is compared with that of its own pruned start, both as the artifacts
that would be served.
"""

from pathlib import Path

from configs.training import DistillSettings
from tasks.distillation.distill import distill
from tasks.distillation.student import choose_layers
from tasks.release.autocast import decide_autocast
from tasks.release.candidate import Candidate
from tasks.release.judging import describe_gain, gain_metrics, held_out_gain, judge_candidate
from tasks.release.measuring import make_candidate, measure_candidate
from tasks.release.stage_result import CandidateResult, StageResult
from tasks.release.workspace import Workspace
from tasks.store.artifact import Artifact
from tasks.store.digest import code_digest, digest_of
from tasks.training.layers import prune_layers
from tasks.training.sealed import curve_csv, trained, training_metrics

CODE = ("tasks/distillation",)


def distill_student(workspace: Workspace, settings: DistillSettings, release: Candidate) -> StageResult:
    """Prune, distil, export in the release's format, judge.

    Raises:
        TrainingError, EngineError, QualityError, StoreError: the stage cannot be completed.
    """
    start = _pruned(workspace, settings)
    texts = tuple(section.text for section in workspace.splits.train)
    training = decide_autocast(workspace, settings.training)
    settings = settings.model_copy(update={"training": training})
    recipe = {"step": "distill", "settings": settings.model_dump(mode="json")}
    student, log = trained(
        workspace.store, workspace.derived, "checkpoint", start, recipe, texts, settings.training.seed, CODE,
        lambda out, scratch: distill(workspace.source, start, texts, settings, out, scratch),
    )  # fmt: skip
    # Layers are named by their block, and the student has other blocks.
    stored_as = release.format.for_trained_weights.model_copy(update={"int8_layers": ()})
    untrained = make_candidate(workspace, start, release.engine, stored_as, note=", pruned")
    candidate = make_candidate(workspace, student, release.engine, stored_as, note=", student")
    measurement = measure_candidate(workspace, candidate)
    judged = judge_candidate(workspace, candidate, "tasks")
    gain = held_out_gain(workspace, untrained, candidate)
    verdict = judged.verdict if judged.verdict != "PASS" or gain.improved else "INCONCLUSIVE"
    return StageResult(
        stage="distill",
        verdict=verdict,
        kept=verdict == "PASS",
        reason=(
            f"student of {start.manifest.recipe['layers']} layers: held-out loss against its pruned start "
            f"{describe_gain(gain)}; {judged.reason}"
        ),
        proposal=candidate,
        measurement=measurement,
        gate=judged.gate,
        candidates=(
            CandidateResult(name=untrained.name, candidate=untrained, measurement=None),
            CandidateResult(name=candidate.name, candidate=candidate, measurement=measurement),
        ),
        samples=judged.samples,
        provisional=judged.provisional,
        metrics=judged.metrics
        | {f"train/{name}": value for name, value in training_metrics("distill", log).items()}
        | {f"quality/{name}": value for name, value in gain_metrics(gain).items()},
        text=judged.text | {"training_distill.csv": curve_csv(log)},
    )


def _pruned(workspace: Workspace, settings: DistillSettings) -> Artifact:
    texts = [section.text for section in workspace.splits.calibration]
    key = digest_of(
        [
            workspace.source.digest,
            settings.layers_fraction,
            texts,
            code_digest("tasks/distillation", "tasks/training"),
        ]
    )

    def seal() -> Artifact:
        keep = choose_layers(workspace.source, settings.layers_fraction, texts)

        def build(out: Path) -> None:
            prune_layers(workspace.source, keep, out)

        return workspace.store.seal(
            build,
            kind="checkpoint",
            parent=workspace.source.digest,
            recipe={"step": "prune", "layers": len(keep), "kept": list(keep)},
            data={"calibration": digest_of(texts)},
        )

    return workspace.store.once_artifact(f"prune-{key}", seal)[0]
