"""An export with other weights: the graph that an earlier checkpoint of the same shape gave, its constants exchanged.

Exporting traces the model in torch, which takes most of the time that an OpenVINO artifact of a small model takes. Adapting and merging
changes no shape: the graph stays what it was, but for its constants. Which constant holds which tensor is not guessed from names, since
norms lose theirs: every tensor of the earlier checkpoint has to equal exactly one constant of its graph, bit for bit. Where that does
not hold, nothing is exchanged and the checkpoint is exported as usual.
"""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.compression.openvino_matrices import MODEL_BIN, MODEL_XML
from tasks.models.checkpoint_folder import SIDE_FILES, weight_files
from tasks.models.safetensors_file import read_tensors
from tasks.store.artifact import Artifact
from tasks.store.digest import digest_of

LEFT_OVER = 0.001
"""Of all float values, that constants which hold no tensor may have: rotary frequencies and the like."""


def shape_digest(checkpoint: Artifact) -> str | None:
    """Digest of all that a checkpoint's graph depends on, its numbers left out; None where they are not stored in float32."""
    tensors = {
        name: (info.dtype, info.shape)
        for file in weight_files(checkpoint.folder)
        for name, info in read_tensors(checkpoint.folder / file).items()
    }
    if any(dtype != "F32" for dtype, _ in tensors.values()):
        return None
    files = {
        name: hashlib.sha256((checkpoint.folder / name).read_bytes()).hexdigest()
        for name in ("config.json", *SIDE_FILES)
        if (checkpoint.folder / name).is_file()
    }
    return digest_of([tensors, files])


def exchange_weights(export: Artifact, source: Artifact, checkpoint: Artifact, out: Path) -> bool:
    """Write the export of `checkpoint` into `out`, from that of a checkpoint of the same shape.

    Args:
        export: f32 graph of `source`.
        source: the checkpoint it was exported from.
        checkpoint: of the same `shape_digest`.
        out: an existing, empty folder; nothing is written where the answer is False.

    Returns:
        False where a tensor of `source` is not exactly one constant of its graph.
    """
    import openvino as ov

    model = ov.Core().read_model(export.folder / MODEL_XML)
    places = _places(model, source)
    if places is None:
        return False
    kept = [_replace(places[name], values) for name, values in _tensors(checkpoint)]
    model.validate_nodes_and_infer_types()
    ov.save_model(model, out / MODEL_XML, compress_to_fp16=False)
    del model, kept  # the graph only pointed into the arrays
    for entry in export.manifest.files:
        if entry.path not in (MODEL_XML, MODEL_BIN):
            shutil.copyfile(export.folder / entry.path, out / entry.path)
    return True


def _places(model: Any, source: Artifact) -> dict[str, Any] | None:
    """The constant of every tensor by its name; None where one has none or two, or where constants are left over."""
    constants: dict[str, list[Any]] = {}
    values_in_all = 0
    for node in model.get_ops():
        if node.get_type_name() == "Constant" and node.get_element_type().to_string() == "f32":
            constants.setdefault(_content(node.data), []).append(node)
            values_in_all += node.data.size
    places: dict[str, Any] = {}
    for name, values in _tensors(source):
        found = constants.pop(_content(values), [])
        if len(found) != 1:
            return None
        places[name] = found[0]
    left = sum(node.data.size for nodes in constants.values() for node in nodes)
    return places if left <= LEFT_OVER * values_in_all else None


def _replace(node: Any, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Let everything that reads a constant read these numbers; returns the array that the graph points into."""
    from openvino import Tensor
    from openvino.op import Constant

    placed = np.ascontiguousarray(values).reshape(tuple(node.shape))
    constant = Constant(Tensor(placed, shared_memory=True), shared_memory=True)
    constant.set_friendly_name(node.get_friendly_name())
    for reader in list(node.output(0).get_target_inputs()):
        reader.replace_source_output(constant.output(0))
    return placed


def _tensors(checkpoint: Artifact) -> Iterator[tuple[str, NDArray[np.float32]]]:
    from safetensors import safe_open

    for file in weight_files(checkpoint.folder):
        with safe_open(checkpoint.folder / file, framework="np") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (no dict)
                yield name, tensors.get_tensor(name)


def _content(values: NDArray[np.float32]) -> str:
    """Of the numbers alone: a graph may give a vector more dimensions."""
    return hashlib.sha256(values.tobytes()).hexdigest()
