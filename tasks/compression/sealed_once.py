"""An artifact sealed under all that it depends on, so that a second call returns the first one's."""

from collections.abc import Callable, Sequence
from pathlib import Path

from configs.weights import WeightSettings
from tasks.store.artifact import Artifact, ArtifactKind
from tasks.store.digest import code_digest, digest_of, library_versions
from tasks.store.store import Store

LIBRARIES = {
    "openvino": ("openvino", "openvino-tokenizers", "optimum-intel", "nncf", "torch", "transformers"),
    "onnxruntime": ("onnxruntime", "onnxruntime-genai", "onnx", "torch", "transformers"),
    "vllm": ("torch", "safetensors"),
}


def sealed_once(
    store: Store,
    parent: Artifact,
    kind: ArtifactKind,
    weights: WeightSettings,
    calibration: Sequence[str],
    build: Callable[[Path], None],
    grids: Artifact | None = None,
) -> Artifact:
    """What `build` writes, sealed; built only where it is not there yet.

    Args:
        store: where it is sealed.
        parent: what it is made from.
        kind: of the artifact, the engine it is for.
        weights: the format.
        calibration: texts that the format may read.
        build: writes the files into an empty folder.
        grids: rounded weights that the build takes over.
    """
    reads = kind == "onnxruntime" or weights.reads_text
    data = {"calibration": digest_of(list(calibration))} if reads and calibration else {}
    if grids is not None:
        data["grids"] = grids.digest
    recipe = {"engine": kind, "weights": weights.model_dump(mode="json")}
    libraries = library_versions(*LIBRARIES[kind])
    key = digest_of([parent.digest, recipe, data, libraries, code_digest("tasks/compression")])
    artifact, _ = store.once_artifact(
        f"build-{key}",
        lambda: store.seal(
            build, kind=kind, parent=parent.digest, recipe=recipe, data=data, libraries=libraries
        ),
    )
    return artifact
