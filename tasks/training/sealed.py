"""A training run as an artifact: trained once for its inputs, resumed after a kill, sealed with its log."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tasks.store.artifact import Artifact, ArtifactKind
from tasks.store.digest import code_digest, digest_of, library_versions
from tasks.store.store import Store
from tasks.training.log import TrainingLog

LOG = "training_log.json"
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")


def trained(
    store: Store,
    scratch_parent: Path,
    kind: ArtifactKind,
    parent: Artifact,
    recipe: dict[str, Any],
    texts: Sequence[str],
    seed: int,
    code: Sequence[str],
    train: Callable[[Path, Path], TrainingLog],
) -> tuple[Artifact, TrainingLog]:
    """The artifact of a training run and its log; trained only if the same run is not in the store.

    Args:
        store: where it is sealed.
        scratch_parent: where training checkpoints lie until then, in a folder named after the run's inputs.
        kind: "adapter", "checkpoint" or "grid".
        parent: what it is trained from.
        recipe: method and every setting, JSON values.
        texts: training documents, in order.
        seed: of the run.
        code: sources that the result depends on, besides `tasks/training`.
        train: trains into the first folder, with the second one for its checkpoints.

    Raises:
        TrainingError: training cannot start, or diverged.
    """
    data, libraries = {"training": digest_of(list(texts))}, library_versions(*LIBRARIES)
    key = digest_of([parent.digest, recipe, data, libraries, code_digest("tasks/training", *code)])

    scratch = scratch_parent / f"training-{key}"

    def build(out: Path) -> None:
        scratch.mkdir(exist_ok=True)
        log = train(out, scratch)
        (out / LOG).write_text(log.model_dump_json(), encoding="utf-8")

    artifact, _ = store.once_artifact(
        f"training-{key}",
        lambda: store.seal(
            build, kind=kind, parent=parent.digest, recipe=recipe, seed=seed, data=data, libraries=libraries
        ),
    )
    shutil.rmtree(
        scratch, ignore_errors=True
    )  # only now: a kill while the result was sealed goes on from here
    return artifact, TrainingLog.model_validate_json((artifact.folder / LOG).read_text(encoding="utf-8"))


def training_metrics(prefix: str, log: TrainingLog) -> dict[str, float]:
    """A training log as metrics of the MLflow contract."""
    return {
        f"{prefix}/loss_first": log.losses[0],
        f"{prefix}/loss_last": log.losses[-1],
        f"{prefix}/tokens_per_s": log.tokens_per_s,
        f"{prefix}/tokens": float(log.tokens),
        f"{prefix}/peak_mib": log.peak_mib,
        f"{prefix}/trainable_parameters": float(log.trainable_parameters),
        **({} if log.kept_step is None else {f"{prefix}/kept_step": float(log.kept_step)}),
    }


def peak_metrics(prefix: str, predicted_mib: float, log: TrainingLog) -> dict[str, float]:
    """The closed form of a training's peak beside the measured one (`{prefix}/peak_mib`)."""
    error = {f"{prefix}/peak_error_fraction": predicted_mib / log.peak_mib - 1} if log.peak_mib > 0 else {}
    return {f"{prefix}/predicted_mib": predicted_mib} | error


def curve_csv(log: TrainingLog) -> str:
    """Loss and learning rate of every step, as CSV."""
    rows = [
        f"{step},{loss},{rate}"
        for step, (loss, rate) in enumerate(zip(log.losses, log.learning_rates, strict=True), 1)
    ]
    return "\n".join(["step,loss_nats,learning_rate", *rows, ""])
