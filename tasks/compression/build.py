"""From a checkpoint to the artifact that an engine serves, built once for each (checkpoint, engine, weight format)."""

from collections.abc import Callable, Sequence
from pathlib import Path

from configs.engine import EngineName
from configs.weights import WeightSettings
from tasks.store.artifact import Artifact, ArtifactKind
from tasks.store.digest import code_digest, digest_of, library_versions
from tasks.store.store import Store

LIBRARIES = {
    "openvino": ("openvino", "openvino-tokenizers", "optimum-intel", "nncf", "torch", "transformers"),
    "onnxruntime": ("onnxruntime", "onnxruntime-genai", "onnx", "torch", "transformers"),
}


def build_artifact(
    store: Store,
    checkpoint: Artifact,
    engine: EngineName,
    weights: WeightSettings,
    calibration: Sequence[str],
) -> Artifact:
    """The artifact of a checkpoint for an engine in a weight format; a second call returns the first one's.

    Args:
        store: where it is sealed.
        checkpoint: a sealed safetensors checkpoint.
        engine: transformers serves the checkpoint itself, and only unquantized.
        weights: the format.
        calibration: texts, used by formats that calibrate.

    Raises:
        CompressionError: the format is impossible for this model or engine, or changed nothing.
    """
    from tasks.compression.error import CompressionError

    match engine:
        case "transformers" if weights.bits in (16, 32):
            return checkpoint
        case "openvino":
            exported = _once(
                store, checkpoint, "openvino", WeightSettings(), (), _export_openvino(checkpoint)
            )
            if weights.bits == 32:
                return exported
            return _once(
                store, exported, "openvino", weights, calibration, _compress(exported, weights, calibration)
            )
        case "onnxruntime":
            return _once(
                store,
                checkpoint,
                "onnxruntime",
                weights,
                calibration,
                _onnx(checkpoint, weights, calibration),
            )
        case _:
            raise CompressionError(
                f"engine {engine} serves no {weights.label} weights made here; use openvino or onnxruntime"
            )


def _once(
    store: Store,
    parent: Artifact,
    kind: ArtifactKind,
    weights: WeightSettings,
    calibration: Sequence[str],
    build: Callable[[Path], None],
) -> Artifact:
    data = {"calibration": digest_of(list(calibration))} if weights.calibration != "none" else {}
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


def _export_openvino(checkpoint: Artifact) -> Callable[[Path], None]:
    def build(out: Path) -> None:
        from tasks.compression.openvino import export_openvino

        export_openvino(checkpoint, out)

    return build


def _compress(
    exported: Artifact, weights: WeightSettings, calibration: Sequence[str]
) -> Callable[[Path], None]:
    def build(out: Path) -> None:
        from tasks.compression.openvino import compress_openvino

        compress_openvino(exported, weights, calibration, out)

    return build


def _onnx(
    checkpoint: Artifact, weights: WeightSettings, calibration: Sequence[str]
) -> Callable[[Path], None]:
    def build(out: Path) -> None:
        from tasks.compression.onnx import build_onnx

        build_onnx(checkpoint, weights, calibration, out)

    return build
