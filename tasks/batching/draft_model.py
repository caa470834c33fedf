"""The draft model of a release: a student of its source where the store has one, else its own first layers.

A shallow copy is the first layers with the same embedding, norm and output head, untrained (the early exit of LayerSkip, Elhoushi et
al. 2024, arXiv:2404.16710, without its training): free to make, and the least that a draft can be.
"""

from pathlib import Path

from configs.speculation import DraftSearch
from tasks.compression.build import build_artifact
from tasks.models.checkpoint import read_architecture
from tasks.store.artifact import Artifact, Manifest
from tasks.store.digest import code_digest, digest_of
from tasks.store.store import Store
from tasks.store.verification import MANIFEST


def draft_checkpoint(store: Store, target: Artifact, search: DraftSearch) -> Artifact:
    """The checkpoint that is to draft for the model of a checkpoint.

    Args:
        store: where drafts are sealed and students are looked for.
        target: the checkpoint that the release was exported from.
        search: which draft.

    Raises:
        StoreError: the named checkpoint is missing or damaged.
        TrainingError: the model has no layer to leave out.
    """
    match search.source:
        case "student":
            student = find_student(store, target)
            return shallow_copy(store, target, search.layers_fraction) if student is None else student
        case "shallow":
            return shallow_copy(store, target, search.layers_fraction)
        case digest:
            return store.open(digest)


def draft_artifact(store: Store, checkpoint: Artifact, target: Artifact, search: DraftSearch) -> Artifact:
    """The draft's checkpoint exported for the engine of the target; itself where it is exported already."""
    if checkpoint.kind == target.kind:
        return checkpoint
    return build_artifact(store, checkpoint, "openvino", search.weights, ())


def shallow_copy(store: Store, target: Artifact, fraction: float) -> Artifact:
    """The first `int(fraction * layers)` layers of a checkpoint, at least one, sealed with it as parent."""
    layers = max(1, int(fraction * read_architecture(target).layers))
    recipe = {"step": "shallow copy", "layers": layers}

    def build(out: Path) -> None:
        from tasks.training.layers import prune_layers  # torch takes seconds to import

        prune_layers(target, tuple(range(layers)), out)

    key = digest_of([target.digest, recipe, code_digest("tasks/training/layers.py")])
    return store.once_artifact(
        f"draft-{key}",
        lambda: store.seal(build, kind="checkpoint", parent=target.digest, recipe=recipe),
    )[0]


def find_student(store: Store, target: Artifact) -> Artifact | None:
    """The newest student that a distill stage made of a checkpoint; None where the store has none."""
    sealed = {path.parent.name: path for path in (store.home / "artifacts").glob(f"*/{MANIFEST}")}
    manifests = {
        digest: Manifest.model_validate_json(path.read_text(encoding="utf-8"))
        for digest, path in sealed.items()
    }

    def descends(digest: str | None) -> bool:
        while digest in manifests and digest != target.digest:
            digest = manifests[digest].parent
        return digest == target.digest

    students = [
        digest
        for digest, manifest in manifests.items()
        if manifest.kind == "checkpoint" and manifest.recipe.get("step") == "distill" and descends(digest)
    ]
    newest = max(students, key=lambda digest: (sealed[digest].stat().st_mtime, digest), default=None)
    return None if newest is None else store.open(newest)
