"""Activations rounded to int8 by scales that the graph stores (NNCF's full quantization)."""

from typing import Any

from configs.weights import WeightSettings
from tasks.compression.error import CompressionError
from tasks.compression.openvino_nncf import embedding_scope


def quantize_statically(model: Any, weights: WeightSettings, samples: list[dict[str, Any]]) -> Any:
    """Round weights and the inputs of linear layers to int8; outliers are moved into the weights first (SmoothQuant).

    Attention itself stays in float: its inputs are the KV cache, whose type is the engine's.

    Args:
        model: the `openvino.Model`, which is used up.
        weights: bits 8, symmetric, activations int8_static.
        samples: calibration inputs.

    Raises:
        CompressionError: NNCF refuses the model.

    SmoothQuant: Xiao et al. 2023, arXiv:2211.10438.
    """
    import nncf

    scope = embedding_scope(model, weights).get("ignored_scope", nncf.IgnoredScope())
    try:
        return nncf.quantize(
            model,
            nncf.Dataset(samples),
            subset_size=len(samples),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(names=scope.names, types=["ScaledDotProductAttention"]),
        )
    except (nncf.ValidationError, nncf.ParameterNotSupportedError) as error:
        raise CompressionError(f"NNCF refuses {weights.label}: {error}; use activations: float") from error
