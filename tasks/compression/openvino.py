"""OpenVINO: export of a checkpoint to an f32 IR, and compression of its weights by NNCF.

The IR is the parent of every weight format: exporting is the slow part (tracing), compressing an IR is not.
"""

import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.weights import WeightSettings
from tasks.compression.error import CompressionError
from tasks.compression.grid import Grid
from tasks.compression.openvino_calibration import calibration_inputs
from tasks.compression.openvino_checks import check_calibrated, check_possible, check_stored
from tasks.compression.openvino_grid import write_grids
from tasks.compression.openvino_matrices import MODEL_BIN, MODEL_XML, halve_tables
from tasks.compression.openvino_nncf import compress_weights
from tasks.compression.openvino_static import quantize_statically
from tasks.engines.freed_memory import return_freed_memory
from tasks.store.artifact import Artifact


def export_openvino(checkpoint: Artifact, out: Path) -> None:
    """Export a checkpoint to a stateful f32 IR with its tokenizer, detokenizer and config files, into `out`.

    Raises:
        CompressionError: the artifact is not a checkpoint, or optimum-intel cannot export its architecture.
    """
    if checkpoint.kind != "checkpoint":
        raise CompressionError(
            f"artifact {checkpoint.digest} is {checkpoint.kind}; export_openvino needs a checkpoint"
        )
    import openvino as ov
    import torch
    from openvino_tokenizers import convert_tokenizer
    from optimum.exporters.openvino import export_from_model
    from optimum.intel import OVConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer's, one for every condition that it freezes
            export_from_model(
                model, out, task="text-generation-with-past", stateful=True, ov_config=OVConfig(dtype="fp32"),
                preprocessors=[],
            )  # fmt: skip
    except (ValueError, NotImplementedError) as error:
        raise CompressionError(
            f"architecture {model.config.model_type} has no OpenVINO export: {error}; use engine: onnxruntime"
        ) from error
    del model
    return_freed_memory()  # the traced model hangs in cycles, and compressing would grow on top of it
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
    tokenizer.save_pretrained(out)
    for name, converted in zip(
        ("openvino_tokenizer", "openvino_detokenizer"),
        convert_tokenizer(tokenizer, with_detokenizer=True),
        strict=True,
    ):
        ov.save_model(converted, out / f"{name}.xml", compress_to_fp16=False)
    if not (out / MODEL_BIN).is_file():
        raise CompressionError(f"optimum-intel wrote no {MODEL_BIN}; the checkpoint cannot be exported")


def compress_openvino(
    ir: Artifact,
    weights: WeightSettings,
    calibration: Sequence[str],
    out: Path,
    grids: Mapping[str, Grid] | None = None,
) -> None:
    """Write the IR with its weights in another format, and its other files as they are, into `out`.

    Args:
        ir: the f32 export.
        weights: the format. `embedding_bits` acts with bits 4 and 8: NNCF stores embeddings in 4 bits (with
            bits 4 only), 8 bits per channel, or leaves them f32 (16: halves); the output head shares the
            format. `int8_layers` are stored in 8 bits per channel, all other linear layers in 4.
        calibration: texts; the first `calibration_samples` are used, by a `calibration` other than none and by
            `activations: int8_static`.
        out: an existing, empty folder.
        grids: of all linear layers by name, with calibration: gptq or source_grid.

    Raises:
        CompressionError: the format is impossible for this model, its calibration text is too short, or it left
            the weights as they were.
    """
    import openvino as ov

    if ir.kind != "openvino":
        raise CompressionError(
            f"artifact {ir.digest} is {ir.kind}; compress_openvino needs an OpenVINO export"
        )
    model = ov.Core().read_model(ir.folder / MODEL_XML)
    if weights.bits in (4, 8):
        if grids is not None:
            model = _from_grids(model, weights, grids)
        else:
            check_possible(model, weights)
            model = _compressed(model, weights, ir.folder, calibration)
        if weights.embedding_bits == 16:
            halve_tables(model)
    ov.save_model(model, out / MODEL_XML, compress_to_fp16=weights.bits == 16)
    del model
    for entry in ir.manifest.files:
        if entry.path not in (MODEL_XML, MODEL_BIN):
            shutil.copyfile(ir.folder / entry.path, out / entry.path)
    check_stored(out, weights)


def _from_grids(model: Any, weights: WeightSettings, grids: Mapping[str, Grid]) -> Any:
    """The linear layers as the grids are; NNCF rounds what is left, the embedding and the output head, to 8 bits."""
    if weights.embedding_bits == 4:
        raise CompressionError(
            f"embedding_bits is 4 with calibration: {weights.calibration}; OpenVINO keeps it at 8 bits or more; use 8"
        )
    write_grids(model, grids)
    tables = weights.model_copy(
        update={
            "bits": 8,
            "group_size": -1,
            "calibration": "none",
            "output_feedback": False,
            "int8_layers": (),
        }
    )
    return compress_weights(model, tables, []) if weights.embedding_bits == 8 else model


def _compressed(model: Any, weights: WeightSettings, folder: Path, calibration: Sequence[str]) -> Any:
    if weights.activations == "int8_static":
        return quantize_statically(model, weights, calibration_inputs(folder, calibration, weights))
    if weights.calibration == "none":
        return compress_weights(model, weights, [])
    compressed = compress_weights(model, weights, calibration_inputs(folder, calibration, weights))
    check_calibrated(compressed, folder, weights)
    return compressed
