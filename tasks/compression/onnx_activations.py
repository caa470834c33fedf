"""Linear layers as integer matrix products, activations included, by onnxruntime.quantization; attention and norms stay f32.

Weights have one scale an output channel, activations one scale a tensor: `int8_dynamic` takes it from each input as it comes,
all rows of a batch together; `int8_static` from the least and the largest value that the calibration text produced. The
MatMulNBits of activations "float" rounds activations too, to int8 in groups of each row (tasks/compression/onnx_rounding.py).

Both sides are uint8: products of uint8 and int8 saturate on CPUs without VNNI, so that figures would differ between machines.
The output head, and the embedding that may share its matrix, are rounded as in the other formats.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from configs.weights import WeightSettings
from tasks.compression.error import CompressionError
from tasks.compression.onnx_calibration import calibration_feeds
from tasks.compression.onnx_console import contained_console
from tasks.compression.onnx_layers import is_linear
from tasks.compression.onnx_rounding import round_ends

_FOLDER = ".int8"


def quantize_activations(
    source: Path, target: Path, weights: WeightSettings, calibration: Sequence[str]
) -> None:
    """Write the f32 graph at `source` with integer linear layers to `target`.

    Args:
        source: the graph, beside its `genai_config.json` and `tokenizer.json`.
        target: the new graph; its folder must hold no ".int8".
        weights: activations int8_dynamic or int8_static; the first `calibration_samples` texts are used.
        calibration: texts, for int8_static.

    Raises:
        CompressionError: a linear layer was left as it was.
    """
    folder = target.parent / _FOLDER
    folder.mkdir()
    with contained_console():
        _quantize(source, folder / target.name, weights, calibration)
    _check_all_quantized(folder / target.name)
    round_ends(folder / target.name, target, weights)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def _quantize(source: Path, target: Path, weights: WeightSettings, calibration: Sequence[str]) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

    options: dict[str, Any] = {
        "op_types_to_quantize": ["MatMul"],
        "nodes_to_exclude": [_head_name(source)],
        "per_channel": True,
        "weight_type": QuantType.QUInt8,
        "use_external_data_format": True,
    }
    extra = {"WeightSymmetric": weights.symmetric, "MatMulConstBOnly": True}
    if weights.activations == "int8_dynamic":
        quantize_dynamic(source, target, extra_options=extra, **options)
        return
    quantize_static(
        source,
        target,
        _CalibrationReader(source.parent, calibration[: weights.calibration_samples]),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        extra_options=extra | {"OpTypesToExcludeOutputQuantization": ["MatMul"]},
        **options,
    )


class _CalibrationReader:
    """Inputs of the graph as onnxruntime.quantization reads them."""

    def __init__(self, folder: Path, texts: Sequence[str]) -> None:
        self._feeds = calibration_feeds(folder, texts)

    def get_next(self) -> Mapping[str, NDArray[Any]] | None:
        return next(self._feeds, None)


def _head_name(source: Path) -> str:
    import onnx_ir as ir

    graph = ir.load(source).graph
    head = next(output for output in graph.outputs if output.name == "logits").producer()
    return str(head.name)  # type: ignore[union-attr]  # an output has a producer


def _check_all_quantized(path: Path) -> None:
    import onnx_ir as ir

    graph = ir.load(path).graph
    head = next(output for output in graph.outputs if output.name == "logits").producer()
    left = [node.name for node in graph if node is not head and is_linear(node)]
    if left:
        raise CompressionError(
            f"onnxruntime.quantization left {len(left)} linear layers in f32, {left[0]} first; use activations: float"
        )
