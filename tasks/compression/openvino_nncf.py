"""Weight compression by NNCF: what it is asked for, layer by layer."""

from collections.abc import Collection
from typing import Any

from configs.weights import WeightSettings
from tasks.compression.error import CompressionError
from tasks.compression.openvino_matrices import embedding_users, layer_name, weight_matrices

_BY_NNCF = ("awq", "scale_estimation", "lora_correction")


def compress_weights(model: Any, weights: WeightSettings, samples: list[dict[str, Any]]) -> Any:
    """Compress the weights of an f32 IR in place; returns the model.

    Args:
        model: the `openvino.Model`, which is used up.
        weights: bits 4 or 8, float activations.
        samples: calibration inputs; empty where nothing calibrates.

    Raises:
        CompressionError: NNCF refuses the format.
    """
    import nncf

    options = _options(model, weights) | (_calibrated(weights, samples) if samples else {})
    try:
        if weights.int8_layers:
            model = _named_at_8_bits(model, weights)
        return nncf.compress_weights(model, **options)
    except (nncf.ValidationError, nncf.ParameterNotSupportedError, nncf.InvalidGroupSizeError) as error:
        raise CompressionError(f"NNCF refuses {weights.label}: {error}; choose another format") from error


def round_layers(model: Any, weights: WeightSettings, layers: Collection[str]) -> Any:
    """Round the named linear layers to nearest, in place; all else stays f32; returns the model.

    Args:
        model: the f32 `openvino.Model`, which is used up.
        weights: 4 bits, in all of the layers.
        layers: names of linear layers.
    """
    import nncf

    others = nncf.IgnoredScope(names=_users_of_others(model, layers))
    return nncf.compress_weights(model, **(_options(model, weights) | {"ignored_scope": others}))


def embedding_scope(model: Any, weights: WeightSettings) -> dict[str, Any]:
    """The option that leaves token embedding and output head as they are, where the format says so."""
    import nncf

    if weights.embedding_bits not in (16, 32):
        return {}
    return {"ignored_scope": nncf.IgnoredScope(names=embedding_users(model))}


def _options(model: Any, weights: WeightSettings) -> dict[str, Any]:
    """What rounding to nearest needs."""
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedCompressionParameters, GroupSizeFallbackMode

    modes, sym = nncf.CompressWeightsMode, weights.symmetric
    if weights.bits == 8:
        return {"mode": modes.INT8_SYM if sym else modes.INT8_ASYM} | embedding_scope(model, weights)
    four = modes.NF4 if weights.number == "nf4" else modes.INT4_SYM if sym else modes.INT4_ASYM
    return {
        "mode": four,
        "group_size": weights.group_size,
        "ratio": 1 - weights.int8_ratio,
        "all_layers": weights.embedding_bits == 4,
        "backup_mode": nncf.BackupMode.INT8_SYM if sym else nncf.BackupMode.INT8_ASYM,
        "advanced_parameters": AdvancedCompressionParameters(
            group_size_fallback_mode=GroupSizeFallbackMode.ERROR
        ),
    } | embedding_scope(model, weights)


def _calibrated(weights: WeightSettings, samples: list[dict[str, Any]]) -> dict[str, Any]:
    """What a method that reads text needs besides."""
    import nncf

    parts = weights.calibration.split("+")
    return {
        "dataset": nncf.Dataset(samples),
        "subset_size": len(samples),
        "gptq": weights.calibration == "nncf_gptq",
        **{name: name in parts for name in _BY_NNCF},
    }


def _named_at_8_bits(model: Any, weights: WeightSettings) -> Any:
    """The named layers in 8 bits per channel, all else left f32.

    `nncf.compress_weights` (3.4) takes a share of 8-bit layers and no names. What is compressed already, a second pass
    leaves as it is: AWQ, which folds the scale of a down_proj into the up_proj before it, puts a multiplication
    between them where that one is no longer f32.
    """
    import nncf

    modes = nncf.CompressWeightsMode
    return nncf.compress_weights(
        model,
        mode=modes.INT8_SYM if weights.symmetric else modes.INT8_ASYM,
        ignored_scope=nncf.IgnoredScope(names=_users_of_others(model, weights.int8_layers)),
    )


def _users_of_others(model: Any, layers: Collection[str]) -> list[str]:
    """Nodes that read a matrix of none of the layers."""
    return [
        use.get_node().get_friendly_name()
        for constant in weight_matrices(model)
        if layer_name(constant) not in layers
        for use in constant.output(0).get_target_inputs()
    ]
