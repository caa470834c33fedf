"""The grids that an artifact is served with, read from the artifact itself."""

from configs.weights import WeightSettings
from tasks.compression.error import CompressionError
from tasks.compression.grid import Grid, load_grids
from tasks.store.artifact import Artifact
from tasks.store.store import Store


def served_grids(store: Store, artifact: Artifact, weights: WeightSettings) -> dict[str, Grid]:
    """Integers, scales and zero points of every linear layer, by the layer's name.

    Args:
        store: of the artifact.
        artifact: of an engine.
        weights: its format.

    Raises:
        CompressionError: its weights are no integers with scales, or stand behind something else that rounds.
    """
    if weights.activations != "float" or "lora_correction" in weights.calibration:
        raise CompressionError(
            f"{weights.label}: only weights are recovered, and this format holds more than them; use activations: float and no "
            "lora_correction"
        )
    if "grids" in artifact.manifest.data:
        return load_grids(store.open(artifact.manifest.data["grids"]).folder)
    if artifact.kind != "openvino":
        raise CompressionError(
            f"{weights.label} of {artifact.kind} was not built from grids; recovery there starts from calibration: gptq"
        )
    if weights.embedding_bits == 4:
        raise CompressionError(
            f"{weights.label}: the embedding of an artifact that is built from grids has 8 bits or more; use embedding_bits: 8"
        )
    import openvino as ov

    from tasks.compression.openvino_grid import read_grids
    from tasks.compression.openvino_matrices import MODEL_XML

    return read_grids(ov.Core().read_model(artifact.folder / MODEL_XML))
