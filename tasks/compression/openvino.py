"""OpenVINO: export of a checkpoint to an f32 IR, and compression of its weights by NNCF.

The IR is the parent of every weight format: exporting is the slow part (tracing), compressing an IR is not.
"""

import shutil
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.weights import WeightSettings
from tasks.compression.error import CompressionError
from tasks.store.artifact import Artifact

MODEL_XML = "openvino_model.xml"
MODEL_BIN = "openvino_model.bin"
CALIBRATION_TOKENS = 256  # of each calibration text, at most
_CALIBRATION = ("dataset", "subset_size", "awq", "scale_estimation", "gptq")


@dataclass(frozen=True)
class WeightFormats:
    """Matrices of an IR by stored type ("u4", "i8", "f32", ...), scales and zero points left out.

    Attributes:
        matrices: number of matrices.
        elements: number of weights.
        file_bytes: size of the weight file, scales and all.
    """

    matrices: dict[str, int]
    elements: dict[str, int]
    file_bytes: int


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


def compress_openvino(ir: Artifact, weights: WeightSettings, calibration: Sequence[str], out: Path) -> None:
    """Write the IR with its weights in another format, and its other files as they are, into `out`.

    Args:
        ir: the f32 export.
        weights: the format. `embedding_bits` acts with bits 4 and 8: NNCF stores embeddings in 4 bits (with
            bits 4 only), 8 bits per channel, or leaves them f32 (16: halves); the output head shares the
            format.
        calibration: texts; the first `calibration_samples` are used.
        out: an existing, empty folder.

    Raises:
        CompressionError: the format is impossible for this model, or it left the weights as they were.
    """
    import openvino as ov

    if ir.kind != "openvino":
        raise CompressionError(
            f"artifact {ir.digest} is {ir.kind}; compress_openvino needs an OpenVINO export"
        )
    model = ov.Core().read_model(ir.folder / MODEL_XML)
    if weights.bits in (4, 8):
        _check_possible(model, weights)
        model = _compress(model, weights, ir.folder, calibration)
    halves = weights.bits == 16 or (weights.bits in (4, 8) and weights.embedding_bits == 16)
    ov.save_model(model, out / MODEL_XML, compress_to_fp16=halves)
    del model
    for entry in ir.manifest.files:
        if entry.path not in (MODEL_XML, MODEL_BIN):
            shutil.copyfile(ir.folder / entry.path, out / entry.path)
    _check_changed(out, weights)


def weight_formats(folder: Path) -> WeightFormats:
    """Count the weight matrices of the IR in `folder` by stored type."""
    import openvino as ov

    model = ov.Core().read_model(folder / MODEL_XML)
    matrices: Counter[str] = Counter()
    elements: Counter[str] = Counter()
    for constant in _matrices(model):
        matrices[constant.get_element_type().to_string()] += 1
        elements[constant.get_element_type().to_string()] += int(np.prod(list(constant.shape)))
    return WeightFormats(dict(matrices), dict(elements), (folder / MODEL_BIN).stat().st_size)


def _matrices(model: Any) -> Iterator[Any]:
    """The constants that are weights; a scale or zero point ends in a dimension of 1."""
    for node in model.get_ops():
        if (
            node.get_type_name() == "Constant"
            and len(node.shape) >= 2
            and min(node.shape[0], node.shape[-1]) > 1
        ):
            yield node


def _check_possible(model: Any, weights: WeightSettings) -> None:
    if weights.bits == 8 and weights.group_size != -1:
        raise CompressionError(
            f"group_size is {weights.group_size} with bits: 8; OpenVINO's 8-bit weights are per channel; "
            "use group_size: -1"
        )
    if weights.bits == 8 and weights.embedding_bits == 4:
        raise CompressionError(
            "embedding_bits is 4 with bits: 8; it must not be below bits; use embedding_bits: 8"
        )
    if weights.group_size == -1:
        return
    for constant in _matrices(model):
        width = int(constant.shape[-1])
        if width % weights.group_size:
            fits = [size for size in (256, 128, 64, 32, 16) if width % size == 0]
            raise CompressionError(
                f"group_size is {weights.group_size}; it must divide the {width} inputs of "
                f"{constant.get_friendly_name()}; "
                f"use one of {fits} or -1"
            )


def _compress(model: Any, weights: WeightSettings, folder: Path, calibration: Sequence[str]) -> Any:
    import nncf
    import openvino as ov
    from nncf.quantization.advanced_parameters import AdvancedCompressionParameters, GroupSizeFallbackMode

    sym = weights.symmetric
    backup = nncf.BackupMode.INT8_SYM if sym else nncf.BackupMode.INT8_ASYM
    options: dict[str, Any] = {}
    if weights.embedding_bits in (16, 32):
        options["ignored_scope"] = nncf.IgnoredScope(names=_embedding_names(model))
    if weights.bits == 8:
        options["mode"] = nncf.CompressWeightsMode.INT8_SYM if sym else nncf.CompressWeightsMode.INT8_ASYM
    else:
        options |= {
            "mode": nncf.CompressWeightsMode.INT4_SYM if sym else nncf.CompressWeightsMode.INT4_ASYM,
            "group_size": weights.group_size,
            "ratio": 1 - weights.int8_ratio,
            "all_layers": weights.embedding_bits == 4,
            "backup_mode": backup,
            "advanced_parameters": AdvancedCompressionParameters(
                group_size_fallback_mode=GroupSizeFallbackMode.ERROR
            ),
        }
    if weights.calibration != "none":
        samples = _calibration_inputs(folder, calibration[: weights.calibration_samples])
        options |= {
            "dataset": nncf.Dataset(samples),
            "subset_size": len(samples),
            "awq": "awq" in weights.calibration,
            "scale_estimation": "scale_estimation" in weights.calibration,
            "gptq": weights.calibration == "gptq",
        }
    try:
        compressed = nncf.compress_weights(model, **options)
        if weights.calibration != "none":
            plain = {name: value for name, value in options.items() if name not in _CALIBRATION}
            rounded = nncf.compress_weights(ov.Core().read_model(folder / MODEL_XML), **plain)
            _check_calibrated(compressed, rounded, weights)
        return compressed
    except (nncf.ValidationError, nncf.ParameterNotSupportedError, nncf.InvalidGroupSizeError) as error:
        raise CompressionError(f"NNCF refuses {weights.label}: {error}; choose another format") from error


def _calibration_inputs(folder: Path, texts: Sequence[str]) -> list[dict[str, Any]]:
    """One pass over each text from an empty cache, shape (1, tokens)."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = []
    for text in texts:
        ids = np.array([tokenizer(text)["input_ids"][:CALIBRATION_TOKENS]], np.int64)
        if ids.size > 1:
            inputs.append(
                {
                    "input_ids": ids,
                    "attention_mask": np.ones_like(ids),
                    "position_ids": np.arange(ids.shape[1])[None],
                    "beam_idx": np.zeros(1, np.int32),
                }
            )
    if not inputs:
        raise CompressionError(
            "calibration needs text and was given none; give text or use calibration: none"
        )
    return inputs


def _embedding_names(model: Any) -> list[str]:
    """The consumers of the widest matrices by rows: the token lookup and the output head."""
    rows = max(int(constant.shape[0]) for constant in _matrices(model))
    tables = [constant for constant in _matrices(model) if constant.shape[0] == rows]
    return [
        use.get_node().get_friendly_name() for table in tables for use in table.output(0).get_target_inputs()
    ]


def _check_calibrated(compressed: Any, rounded: Any, weights: WeightSettings) -> None:
    """NNCF skips a method that finds nothing to do in an architecture with no more than a log line."""
    plain = {node.get_friendly_name(): node for node in _matrices(rounded)}
    if all(np.array_equal(node.data, plain[node.get_friendly_name()].data) for node in _matrices(compressed)):
        raise CompressionError(
            f"calibration: {weights.calibration} left every weight as rounding to nearest leaves it; "
            "it does not apply to this model; use another method or none"
        )


def _check_changed(out: Path, weights: WeightSettings) -> None:
    formats = weight_formats(out)
    wanted = {4: ("u4", "i4"), 8: ("u8", "i8"), 16: ("f16",), 32: ("f32",)}[weights.bits]
    changed = sum(formats.matrices.get(kind, 0) for kind in wanted)
    if not changed:
        raise CompressionError(
            f"{weights.label} left no matrix in {' or '.join(wanted)} (found {formats.matrices}); choose "
            "another format"
        )
    left = formats.matrices.get("f32", 0) if weights.bits < 32 else 0
    if left and not (weights.embedding_bits == 32):
        raise CompressionError(f"{weights.label} left {left} matrices in f32; choose another format")
