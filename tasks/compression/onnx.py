"""ONNX Runtime: a checkpoint as an ONNX graph for the CPU, in f32 or with its weights rounded in groups.

onnxruntime-genai's builder writes the f32 graph in about three seconds once torch and transformers are
imported; rounding it takes about three more. So every format starts from the f32 graph, built beside the
result, instead of from the builder's own int4 and int8: those leave the embedding in f32 at 8 bits (113 MB
of the demo model's 267 MB) and know no 8-bit embedding at 4.
"""

import contextlib
import io
import json
import logging
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from configs.weights import WeightSettings
from tasks.compression.error import CompressionError
from tasks.engines.freed_memory import return_freed_memory
from tasks.store.artifact import Artifact

MODEL = "model.onnx"
DATA = "model.onnx.data"
_GROUP_SIZES = (16, 32, 64, 128, 256)  # of the MatMulNBits kernels
_FLOAT_GRAPH = ".f32"


def build_onnx(checkpoint: Artifact, weights: WeightSettings, calibration: Sequence[str], out: Path) -> None:
    """Write the ONNX graph, the tokenizer and the Hugging Face files of a checkpoint into `out`.

    Args:
        checkpoint: a safetensors checkpoint.
        weights: the format. `group_size` is needed with bits 4 and 8; `embedding_bits` is the format of the
            token embedding and the output head: 4, 8 (in groups of `group_size` too) or 32. Rounding is to
            nearest.
        calibration: not read: no method of this path calibrates, and a format that asks for it is refused.
        out: an existing, empty folder.

    Raises:
        CompressionError: the artifact is no checkpoint, its architecture has no ONNX export, the format is
            impossible here, or it left the weights as they were.
    """
    if checkpoint.kind != "checkpoint":
        raise CompressionError(
            f"artifact {checkpoint.digest} is {checkpoint.kind}; build_onnx needs a checkpoint"
        )
    _check_possible(weights)
    if weights.bits == 32:
        _export(checkpoint.folder, out)
    else:
        from tasks.compression.onnx_rounding import round_graph

        float_graph = out / _FLOAT_GRAPH  # inside `out`, so that a killed build leaves nothing elsewhere
        _export(checkpoint.folder, float_graph)
        round_graph(float_graph / MODEL, out / MODEL, weights)
        _check_smaller(float_graph / DATA, out / DATA, weights)
        for file in float_graph.iterdir():
            if file.name not in (MODEL, DATA):
                shutil.move(file, out / file.name)
        shutil.rmtree(float_graph)
    _keep_end_of_text(checkpoint.folder, out)


def _check_possible(weights: WeightSettings) -> None:
    if weights.bits == 32:
        return
    if weights.bits == 16:
        raise CompressionError(
            "bits is 16; ONNX Runtime's CPU kernels compute in f32 or on 4 and 8 bits; use bits: 32"
        )
    if weights.group_size not in _GROUP_SIZES:
        raise CompressionError(
            f"group_size is {weights.group_size} with bits: {weights.bits}; ONNX Runtime rounds in groups of "
            f"{', '.join(map(str, _GROUP_SIZES))}; use one of them, or engine: openvino"
        )
    if weights.calibration != "none":
        raise CompressionError(
            f"calibration is {weights.calibration}; the ONNX path rounds to nearest; use calibration: none, "
            "or engine: openvino"
        )
    if weights.int8_ratio:
        raise CompressionError(
            f"int8_ratio is {weights.int8_ratio}; the ONNX path gives all linear layers the same bits; use "
            "int8_ratio: 0, or engine: openvino"
        )
    if weights.embedding_bits == 16:
        raise CompressionError(
            "embedding_bits is 16; ONNX Runtime's CPU kernels take 4, 8 or 32; use one of them"
        )


def _export(checkpoint: Path, out: Path) -> None:
    """The f32 graph, its tokenizer and `genai_config.json`, by onnxruntime-genai's builder."""
    cache = out / ".cache"
    out.mkdir(exist_ok=True)
    with _builder_console() as console:
        from onnxruntime_genai.models import builder

        where = (str(checkpoint), str(checkpoint), str(out), "fp32", "cpu", str(cache))
        try:
            options = builder.parse_extra_options(*where, ["hf_token=false", "hf_remote=false"])
            builder.create_model(*where, **options)
        except (NotImplementedError, ValueError) as error:
            said = console.getvalue().strip().splitlines()[-1:]
            raise CompressionError(
                f"the checkpoint has no ONNX export: {error} {said}; use engine: openvino or transformers"
            ) from error
    shutil.rmtree(cache, ignore_errors=True)
    return_freed_memory()  # the checkpoint and a transposed copy of it
    missing = [name for name in (MODEL, DATA, "genai_config.json") if not (out / name).is_file()]
    if missing:
        raise CompressionError(
            f"onnxruntime-genai's builder wrote no {', '.join(missing)}; use engine: openvino"
        )


@contextlib.contextmanager
def _builder_console() -> Iterator[io.StringIO]:
    """Contain what the builder does to the process: prints, progress bars, a root log handler, `sys.path`."""
    console = io.StringIO()
    root, path = logging.getLogger(), list(sys.path)
    level, handlers = root.level, list(root.handlers)
    try:
        with contextlib.redirect_stdout(console), contextlib.redirect_stderr(console):
            import onnxruntime_genai.models as models

            sys.path.append(str(Path(models.__file__).parent))  # its modules import each other by bare names
            root.addHandler(logging.NullHandler())  # its logging.basicConfig does nothing where a handler is
            yield console
    finally:
        sys.path[:] = path
        root.handlers[:] = handlers
        root.setLevel(level)


def _check_smaller(before: Path, after: Path, weights: WeightSettings) -> None:
    if after.stat().st_size >= before.stat().st_size:
        raise CompressionError(
            f"{weights.label} left {after.stat().st_size} of {before.stat().st_size} bytes; it must make the "
            "weights smaller; use a larger group_size"
        )


def _keep_end_of_text(checkpoint: Path, out: Path) -> None:
    """Give the graph the checkpoint's end-of-text tokens: the builder adds guesses of its own."""
    eos = None
    for name in ("config.json", "generation_config.json"):  # the second one rules, as in transformers
        if (checkpoint / name).is_file():
            shutil.copy(checkpoint / name, out / name)
            eos = json.loads((checkpoint / name).read_text(encoding="utf-8")).get("eos_token_id", eos)
    path = out / "genai_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model"]["eos_token_id"] = [] if eos is None else eos if isinstance(eos, list) else [eos]
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
