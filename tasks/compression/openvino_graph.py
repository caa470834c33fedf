"""The f32 graph of a checkpoint for OpenVINO: an earlier one of the same shape with other weights, else traced anew."""

from collections.abc import Callable
from pathlib import Path

from configs.weights import WeightSettings
from tasks.compression.sealed_once import LIBRARIES, sealed_once
from tasks.store.artifact import Artifact
from tasks.store.digest import code_digest, digest_of, library_versions
from tasks.store.errors import DamagedArtifact, MissingArtifact
from tasks.store.store import ArtifactRef, Store


def exported_graph(store: Store, checkpoint: Artifact) -> Artifact:
    """The f32 graph of a checkpoint; the first of its shape is what later ones of that shape are made from."""
    from tasks.compression.openvino_exchange import shape_digest

    shape = shape_digest(checkpoint)
    code = code_digest("tasks/compression")
    key = f"graph-{digest_of([shape, library_versions(*LIBRARIES['openvino']), code])}"
    known = store.recall(key, ArtifactRef) if shape is not None else None
    build = _export_openvino(store, checkpoint, known)
    exported = sealed_once(store, checkpoint, "openvino", WeightSettings(), (), build)
    if shape is not None and known is None:
        store.remember(key, ArtifactRef(artifact=exported.digest))
    return exported


def _export_openvino(
    store: Store, checkpoint: Artifact, same_shape: ArtifactRef | None
) -> Callable[[Path], None]:
    def build(out: Path) -> None:
        from tasks.compression.openvino import export_openvino
        from tasks.compression.openvino_exchange import exchange_weights

        earlier = _with_parent(store, same_shape) if same_shape is not None else None
        if same_shape is not None and earlier is not None and exchange_weights(*earlier, checkpoint, out):
            store.remember(_exchanged_key(checkpoint), same_shape)
        else:
            export_openvino(checkpoint, out)

    return build


def was_exchanged(store: Store, checkpoint: Artifact) -> bool:
    """Whether the checkpoint's graph is an earlier one with other weights, which takes far less memory than tracing."""
    return store.recall(_exchanged_key(checkpoint), ArtifactRef) is not None


def _exchanged_key(checkpoint: Artifact) -> str:
    return f"exchanged-{digest_of([checkpoint.digest, code_digest('tasks/compression')])}"


def _with_parent(store: Store, known: ArtifactRef) -> tuple[Artifact, Artifact] | None:
    """A remembered artifact and the one it was made from; None where either is gone or damaged: it is built without them."""
    try:
        artifact = store.open(known.artifact)
        return artifact, store.open(artifact.manifest.parent or "")
    except (DamagedArtifact, MissingArtifact):
        return None
