"""What GPTQ's per-layer sensitivities, measured once, say of formats that keep other layers at 8 bits.

The predicted divergence is too small by a factor (second order, and in sample; `docs/log.md`), but the factor is much the same for the
formats of one set of grids. So one of them that was screened gives the factor, and the budgets of the others give the rest, without
rounding a single layer.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress

from configs.engine import EngineSettings
from configs.weights import WeightSettings
from tasks.compression.build import layer_sensitivities, resolve_weights
from tasks.compression.error import CompressionError
from tasks.quantization.options import Option
from tasks.release.workspace import Workspace


def sensitivities_of(
    workspace: Workspace, engine: EngineSettings, weights: WeightSettings
) -> dict[str, float]:
    """Nats a token of each layer at 4 bits, where building the format measured them."""
    return layer_sensitivities(workspace.store, workspace.source, engine.engine, weights, _texts(workspace))


def estimated_nats(
    workspace: Workspace, screened: Option, nats: float, options: Sequence[Option]
) -> dict[str, float]:
    """Divergence of the options that are built from the grids of one that was screened, by name.

    Args:
        workspace: of the rollout.
        screened: an option that is built.
        nats: its divergence on the search text.
        options: others.
    """
    errors = sensitivities_of(workspace, screened.engine, screened.weights)
    if not errors:
        return {}
    factor = nats / _left(workspace, screened, errors)
    found = {}
    for relative in options:
        if _grids(relative) == _grids(screened):
            with suppress(CompressionError):  # its budget cannot be met, which is said where it is tried
                found[relative.name] = factor * _left(workspace, relative, errors)
    return found


def _left(workspace: Workspace, option: Option, errors: Mapping[str, float]) -> float:
    """Predicted nats of the layers that an option leaves at 4 bits.

    Raises:
        CompressionError: its budget of bytes is below 4 bits everywhere.
    """
    stored = resolve_weights(
        workspace.store, workspace.source, option.engine.engine, option.weights, _texts(workspace)
    )
    least = 1e-3 * sum(errors.values())  # 8 bits are not free either
    return max(sum(nats for name, nats in errors.items() if name not in stored.int8_layers), least)


def _grids(option: Option) -> tuple[object, ...]:
    """What decides the 4-bit grids that an option is built from."""
    plain = option.weights.model_copy(update={"max_bytes_fraction": None, "max_rounding_nats": None})
    return option.engine.engine, plain


def _texts(workspace: Workspace) -> list[str]:
    return [section.text for section in workspace.splits.calibration]
