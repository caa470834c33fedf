"""An export with other weights: the graph that an earlier checkpoint of the same shape gave, its constants exchanged.

Exporting traces the model in torch, which takes most of the time that an OpenVINO artifact of a small model takes. Adapting and merging
changes no shape: the graph stays what it was, but for its constants. Which constant holds which tensor is not guessed from names, since
norms lose theirs: every tensor of the earlier checkpoint has to equal exactly one constant of its graph, bit for bit. Where that does
not hold, nothing is exchanged and the checkpoint is exported as usual.
"""

import hashlib
import shutil
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

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

    The file of constants is copied and written over in place, one tensor at a time, so that a model of any size takes the memory of
    its largest tensor.

    Args:
        export: f32 graph of `source`.
        source: the checkpoint it was exported from.
        checkpoint: of the same `shape_digest`.
        out: an existing, empty folder; nothing is written where the answer is False.

    Returns:
        False where a tensor of `source` is not exactly one constant of its graph.
    """
    places = _places(export.folder, source)
    if places is None:
        return False
    for entry in export.manifest.files:
        shutil.copyfile(export.folder / entry.path, out / entry.path)
    with (out / MODEL_BIN).open("r+b") as constants:
        for name, values in _tensors(checkpoint):
            constants.seek(places[name])
            constants.write(_bytes(values))
    return True


def _places(export: Path, source: Artifact) -> dict[str, int] | None:
    """Where each tensor's constant begins in the file; None where one has none or two, or where constants are left over."""
    constants = _constants(export / MODEL_XML)
    uses = Counter(offset for _, offset, _ in constants)
    floats = {(offset, size) for element, offset, size in constants if element == "f32"}
    found: dict[str, list[int]] = {}
    with (export / MODEL_BIN).open("rb") as file:
        for offset, size in sorted(floats):
            file.seek(offset)
            found.setdefault(hashlib.sha256(file.read(size)).hexdigest(), []).append(offset)
    places: dict[str, int] = {}
    placed_bytes = 0
    for name, values in _tensors(source):
        offsets = found.pop(_content(values), [])
        if len(offsets) != 1 or uses[offsets[0]] != 1:
            return None
        places[name] = offsets[0]
        placed_bytes += values.nbytes
    all_bytes = sum(size for _, size in floats)
    return places if all_bytes - placed_bytes <= LEFT_OVER * all_bytes else None


def _constants(xml: Path) -> list[tuple[str, int, int]]:
    """Element type, offset and bytes of every constant of a graph; constants of equal bytes may share a place."""
    layers = (layer for layer in ElementTree.parse(xml).iter("layer") if layer.get("type") == "Const")
    return [
        (data.attrib["element_type"], int(data.attrib["offset"]), int(data.attrib["size"]))
        for layer in layers
        for data in layer.iter("data")
    ]


def _tensors(checkpoint: Artifact) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """One tensor after another; the file is opened for each, or all that was read of it would stay mapped."""
    from safetensors import safe_open

    for file in weight_files(checkpoint.folder):
        for name in read_tensors(checkpoint.folder / file):
            with safe_open(checkpoint.folder / file, framework="np") as tensors:
                yield name, tensors.get_tensor(name)


def _content(values: NDArray[np.float32]) -> str:
    """Of the numbers alone: a graph may give a vector more dimensions."""
    return hashlib.sha256(_bytes(values)).hexdigest()


def _bytes(values: NDArray[np.float32]) -> memoryview:
    return np.ascontiguousarray(values).reshape(-1).data.cast("B")
