"""Which weight formats an engine can serve, before anything is built.

The builders (`tasks/compression`) refuse the same, with the model at hand; a product of settings asks here, so that what no engine
can serve is no part of a space.
"""

from configs.engine import EngineSettings
from configs.weights import WeightSettings

ONNX_GROUP_SIZES = (16, 32, 64, 128, 256)
_NNCF = ("awq", "scale_estimation", "lora_correction", "nncf_gptq")
_FITTED_TO_WEIGHTS = ("hqq", "k_quant")


def why_impossible(weights: WeightSettings, engine: EngineSettings) -> str | None:
    """Why an engine cannot serve a format, as "setting: value"; None where it can."""
    match engine.engine:
        case "openvino":
            broken = _openvino(weights)
        case "onnxruntime":
            broken = _onnxruntime(weights, engine)
        case _:
            broken = {"bits": weights.bits not in (16, 32)}
    return next((f"{setting} on {engine.engine}" for setting, is_broken in broken.items() if is_broken), None)


def _openvino(weights: WeightSettings) -> dict[str, bool]:
    is_eight = weights.bits == 8
    return {
        "calibration": weights.calibration in _FITTED_TO_WEIGHTS,
        "activations": weights.activations == "int8_dynamic"
        or (weights.activations == "int8_static" and not weights.symmetric),
        "int8_ratio": weights.int8_ratio == 1,
        "group_size": is_eight and weights.group_size != -1,
        "embedding_bits": weights.embedding_bits == 4
        and (is_eight or weights.is_from_grids or "lora_correction" in weights.calibration),
    }


def _onnxruntime(weights: WeightSettings, engine: EngineSettings) -> dict[str, bool]:
    is_rounded, floats = weights.bits in (4, 8), weights.activations == "float"
    return {
        "compute": engine.compute != "f32",
        "kv_cache": engine.kv_cache not in ("f32", "u8", "u4"),
        "bits": weights.bits == 16,
        "number": weights.number != "int",
        "int8_ratio": bool(weights.int8_ratio),
        "embedding_bits": is_rounded and weights.embedding_bits == 16,
        "group_size": is_rounded and (weights.group_size not in (ONNX_GROUP_SIZES if floats else (-1,))),
        "calibration": any(part in _NNCF for part in weights.calibration.split("+")),
        "symmetric": weights.calibration in _FITTED_TO_WEIGHTS and weights.symmetric,
    }
