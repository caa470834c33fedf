"""From a checkpoint to the artifact that an engine serves, built once for each (checkpoint, engine, weight format)."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.engine import EngineName
from configs.weights import WeightSettings
from tasks.compression.error import CompressionError
from tasks.compression.grid import Grid, load_grids
from tasks.compression.mixed_precision import layer_errors, layers_within_bytes, layers_within_divergence
from tasks.compression.openvino_graph import exported_graph
from tasks.compression.sealed_once import sealed_once
from tasks.compression.source_grid import layers_off_grid
from tasks.models.checkpoint import read_architecture
from tasks.store.artifact import Artifact
from tasks.store.digest import code_digest, digest_of, library_versions
from tasks.store.record import Record
from tasks.store.store import Store


def build_artifact(
    store: Store,
    checkpoint: Artifact,
    engine: EngineName,
    weights: WeightSettings,
    calibration: Sequence[str],
    *,
    integer_cache: bool = False,
    grids: Artifact | None = None,
) -> Artifact:
    """The artifact of a checkpoint for an engine in a weight format; a second call returns the first one's.

    Args:
        store: where it is sealed.
        checkpoint: a sealed safetensors checkpoint.
        engine: transformers serves the checkpoint itself, and only unquantized; so does vllm, which takes packed ones, too.
        weights: the format, its budgets resolved (`resolve_weights`).
        calibration: texts, used by formats that calibrate.
        integer_cache: keys and values will be rounded; ONNX Runtime's kernels need their ranges on the calibration text.
        grids: of the linear layers, in a format that is built from some; None: those that `rounded_grids` makes.

    Raises:
        CompressionError: the format is impossible for this model or engine, or changed nothing.
    """
    if grids is not None and not weights.is_from_grids:
        raise CompressionError(
            f"{weights.label} is not built from grids; use calibration: gptq for those that are given"
        )
    match engine:
        case "transformers" | "vllm" if weights.bits in (16, 32):
            return checkpoint
        case "vllm":
            grids = _grids(store, checkpoint, engine, weights, calibration) if grids is None else grids
            build = _vllm(checkpoint, weights, grids)
            return sealed_once(store, checkpoint, "vllm", weights, calibration, build, grids)
        case "openvino":
            exported = exported_graph(store, checkpoint)
            if weights.bits == 32:
                return exported
            grids = _grids(store, checkpoint, engine, weights, calibration) if grids is None else grids
            build = _compress(exported, weights, calibration, grids)
            return sealed_once(store, exported, "openvino", weights, calibration, build, grids)
        case "onnxruntime":
            grids = _grids(store, checkpoint, engine, weights, calibration) if grids is None else grids
            # Ranges and static scales are all that this path reads of the text itself.
            texts = calibration if integer_cache or weights.activations == "int8_static" else ()
            build = _onnx(checkpoint, weights, texts, grids)
            return sealed_once(store, checkpoint, "onnxruntime", weights, texts, build, grids)
        case _:
            raise CompressionError(
                f"engine {engine} serves no {weights.label} weights made here; use openvino or onnxruntime"
            )


def resolve_weights(
    store: Store,
    checkpoint: Artifact,
    engine: EngineName,
    weights: WeightSettings,
    calibration: Sequence[str],
) -> WeightSettings:
    """The format with the layers that stay at 8 bits named: those a budget pays for, or those that lie on no grid of the source.

    With a budget all layers are rounded to 4 bits once, to learn what each loses.

    Raises:
        CompressionError: the budget is below 4 bits everywhere, a layer cannot be rounded, or the source has no grid.
    """
    if weights.calibration == "source_grid":
        off = _off_grid(store, checkpoint, weights.group_size).layers
        return weights.model_copy(update={"int8_layers": tuple(sorted({*off, *weights.int8_layers}))})
    if weights.max_bytes_fraction is None and weights.max_rounding_nats is None:
        return weights
    plain = weights.model_copy(update={"max_bytes_fraction": None, "max_rounding_nats": None})
    folder = rounded_grids(store, checkpoint, engine, plain, calibration).folder
    errors, grids = layer_errors(folder), load_grids(folder)
    if weights.max_bytes_fraction is None:
        named = layers_within_divergence(errors, grids, weights.max_rounding_nats or 0.0)
    else:
        named = layers_within_bytes(
            errors, grids, _budget_bytes(checkpoint, weights, weights.max_bytes_fraction, grids)
        )
    return plain.model_copy(update={"int8_layers": named})


class OffGrid(Record):
    """The linear layers of a source that lie on no grid of 4 bits, by name."""

    layers: tuple[str, ...]


def _off_grid(store: Store, checkpoint: Artifact, group_size: int) -> OffGrid:
    """Looked for once."""
    key = digest_of([checkpoint.digest, group_size, code_digest("tasks/compression")])
    return store.once(
        f"off-grid-{key}", OffGrid, lambda: OffGrid(layers=layers_off_grid(checkpoint, group_size))
    )[0]


def layer_sensitivities(
    store: Store,
    checkpoint: Artifact,
    engine: EngineName,
    weights: WeightSettings,
    calibration: Sequence[str],
) -> dict[str, float]:
    """Nats a token that each linear layer loses at 4 bits, by name, where building the format measured it; else nothing.

    Args:
        store: of the artifact.
        checkpoint: it was made from.
        engine: it is for.
        weights: as declared, with its budget; it was built.
        calibration: texts it was built with.
    """
    if (weights.bits, weights.calibration) != (4, "gptq") or weights.int8_layers:
        return {}
    plain = weights.model_copy(update={"max_bytes_fraction": None, "max_rounding_nats": None})
    return layer_errors(rounded_grids(store, checkpoint, engine, plain, calibration).folder)


def _budget_bytes(
    checkpoint: Artifact, weights: WeightSettings, fraction: float, grids: Mapping[str, Grid]
) -> float:
    """What the linear layers may take: the budget less the embedding, the output head and the norms."""
    architecture = read_architecture(checkpoint)
    tables = architecture.vocabulary * (1 if architecture.tied_embeddings else 2)
    linear = sum(grid.codes.size for grid in grids.values())
    norms = architecture.parameters - linear - tables * architecture.hidden
    # Of a table at 8 bits every row has a float16 scale and a zero point.
    others = tables * (architecture.hidden * weights.embedding_bits / 8 + 3) + 4 * norms
    budget = fraction * 4 * architecture.parameters - others
    least = sum(grid.stored_bytes for grid in grids.values())
    if budget < least:
        possible = (least + others) / (4 * architecture.parameters)
        raise CompressionError(
            f"max_bytes_fraction is {fraction:g}; 4 bits everywhere take {possible:.3f} of the float32 bytes; allow at least that, "
            "or larger groups"
        )
    return budget


def _grids(
    store: Store,
    checkpoint: Artifact,
    engine: EngineName,
    weights: WeightSettings,
    calibration: Sequence[str],
) -> Artifact | None:
    return rounded_grids(store, checkpoint, engine, weights, calibration) if weights.is_from_grids else None


def rounded_grids(
    store: Store,
    checkpoint: Artifact,
    engine: EngineName,
    weights: WeightSettings,
    calibration: Sequence[str],
) -> Artifact:
    """The grids of a format that is built from some; before GPTQ's what formats share: every token's importance at every layer.

    Args:
        store: where they are sealed, once.
        checkpoint: a sealed safetensors checkpoint.
        engine: they are for: OpenVINO's 8-bit layers have a scale a channel.
        weights: the format, its budgets resolved.
        calibration: texts, of which the format uses `calibration_samples`.

    Raises:
        CompressionError: a layer cannot be rounded, or the text is too short.
    """
    texts = calibration[: weights.calibration_samples] if weights.reads_text else ()
    data = {"calibration": digest_of(list(texts))} if texts else {}

    def remembered(name: str, recipe: dict[str, Any], build: Callable[[Path], None]) -> Artifact:
        libraries = library_versions("torch", "transformers")
        key = digest_of([checkpoint.digest, recipe, data, libraries, code_digest("tasks/compression")])
        artifact, _ = store.once_artifact(
            f"{name}-{key}",
            lambda: store.seal(
                build, kind="grid", parent=checkpoint.digest, recipe=recipe, data=data, libraries=libraries
            ),
        )
        return artifact

    # OpenVINO's 8-bit weights are per channel; ONNX Runtime's kernel wants groups there, too.
    eight_group = weights.group_size if engine == "onnxruntime" else -1
    recipe = {"weights": weights.model_dump(mode="json"), "eight_group": eight_group}
    if weights.calibration == "source_grid":
        return remembered("grids", recipe, _keep(checkpoint, weights, eight_group))
    shared = {"of_outputs": True} if weights.output_feedback else {}
    importance = remembered("importance", shared, _importance(checkpoint, texts, weights.output_feedback))
    return remembered("grids", recipe, _round(checkpoint, importance.folder, weights, eight_group))


def _importance(checkpoint: Artifact, texts: Sequence[str], of_outputs: bool) -> Callable[[Path], None]:
    def build(out: Path) -> None:
        from tasks.compression.grids import write_importance

        write_importance(checkpoint, texts, out, of_outputs=of_outputs)

    return build


def _round(
    checkpoint: Artifact, importance: Path, weights: WeightSettings, eight_group: int
) -> Callable[[Path], None]:
    def build(out: Path) -> None:
        from tasks.compression.grids import write_grids_of

        write_grids_of(checkpoint, importance, weights, out, eight_group=eight_group)

    return build


def _keep(checkpoint: Artifact, weights: WeightSettings, eight_group: int) -> Callable[[Path], None]:
    def build(out: Path) -> None:
        from tasks.compression.source_grid import write_source_grids

        write_source_grids(checkpoint, weights, out, eight_group=eight_group)

    return build


def _compress(
    exported: Artifact, weights: WeightSettings, calibration: Sequence[str], grids: Artifact | None
) -> Callable[[Path], None]:
    def build(out: Path) -> None:
        from tasks.compression.openvino import compress_openvino

        found = None if grids is None else load_grids(grids.folder)
        compress_openvino(exported, weights, calibration, out, found)

    return build


def _onnx(
    checkpoint: Artifact, weights: WeightSettings, calibration: Sequence[str], grids: Artifact | None
) -> Callable[[Path], None]:
    def build(out: Path) -> None:
        from tasks.compression.onnx import build_onnx

        found = None if grids is None else load_grids(grids.folder)
        build_onnx(checkpoint, weights, calibration, out, found)

    return build


def _vllm(checkpoint: Artifact, weights: WeightSettings, grids: Artifact | None) -> Callable[[Path], None]:
    def build(out: Path) -> None:
        from tasks.compression.vllm import build_vllm

        found = None if grids is None else load_grids(grids.folder)
        build_vllm(checkpoint, weights, out, found)

    return build
