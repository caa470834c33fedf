"""ONNX Runtime: a checkpoint as an ONNX graph for the CPU, in f32 or with its weights rounded in groups.

onnxruntime-genai's builder writes the f32 graph in about three seconds once torch and transformers are
imported; rounding it takes about three more. So every format starts from the f32 graph, built beside the
result, instead of from the builder's own int4 and int8: those leave the embedding in f32 at 8 bits (113 MB
of the demo model's 267 MB) and know no 8-bit embedding at 4.
"""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from configs.weights import WeightSettings
from tasks.compression.error import CompressionError
from tasks.compression.grid import Grid
from tasks.compression.onnx_calibration import measure_cache
from tasks.compression.onnx_console import contained_console
from tasks.compression.onnx_rules import check_possible
from tasks.engines.freed_memory import return_freed_memory
from tasks.store.artifact import Artifact

MODEL = "model.onnx"
DATA = "model.onnx.data"
_FLOAT_GRAPH = ".f32"


def build_onnx(
    checkpoint: Artifact,
    weights: WeightSettings,
    calibration: Sequence[str],
    out: Path,
    grids: Mapping[str, Grid] | None = None,
) -> None:
    """Write the ONNX graph, the tokenizer and the Hugging Face files of a checkpoint into `out`.

    Args:
        checkpoint: a safetensors checkpoint.
        weights: the format. `group_size` is needed with bits 4 and 8, but is -1 where activations are not float;
            `embedding_bits` is the format of the token embedding and the output head: 4, 8 (rounded to nearest,
            in groups of `group_size`, or of 32) or 32.
        calibration: texts; the first `calibration_samples` give activations: int8_static its scales, and an engine
            with a quantized KV cache the ranges of keys and values. Without any, the artifact serves an f32 cache only.
        out: an existing, empty folder.
        grids: of all linear layers by name, with calibration: gptq or source_grid.

    Raises:
        CompressionError: the artifact is no checkpoint, its architecture has no ONNX export, the format is
            impossible here, or it left the weights as they were.
    """
    if checkpoint.kind != "checkpoint":
        raise CompressionError(
            f"artifact {checkpoint.digest} is {checkpoint.kind}; build_onnx needs a checkpoint"
        )
    check_possible(weights, calibration_texts=len(calibration), grids=grids is not None)
    float_graph = (
        out if weights.bits == 32 else out / _FLOAT_GRAPH
    )  # inside `out`: a killed build leaves nothing elsewhere
    _export(checkpoint.folder, float_graph)
    if calibration:
        measure_cache(float_graph / MODEL, calibration[: weights.calibration_samples], out)
    if weights.bits != 32:
        if weights.activations == "float":
            with contained_console():
                from tasks.compression.onnx_rounding import round_graph

                round_graph(float_graph / MODEL, out / MODEL, weights, grids)
        else:
            from tasks.compression.onnx_activations import quantize_activations

            quantize_activations(float_graph / MODEL, out / MODEL, weights, calibration)
        _check_smaller(float_graph / DATA, out / DATA, weights)
        for file in float_graph.iterdir():
            if file.name not in (MODEL, DATA):
                shutil.move(file, out / file.name)
        shutil.rmtree(float_graph)
    _keep_end_of_text(checkpoint.folder, out)


def _export(checkpoint: Path, out: Path) -> None:
    """The f32 graph, its tokenizer and `genai_config.json`, by onnxruntime-genai's builder."""
    cache = out / ".cache"
    out.mkdir(exist_ok=True)
    with contained_console() as console:
        import onnxruntime_genai.models as models

        sys.path.append(str(Path(models.__file__).parent))  # its modules import each other by bare names
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
