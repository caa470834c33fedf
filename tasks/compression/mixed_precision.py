"""Which layers are worth 8 bits: the predicted loss of each at 4 bits against the bytes that 8 would cost.

The predicted losses add up (`tasks.compression.fisher`), and a layer at 8 bits loses next to nothing beside one at 4, so this is a
knapsack; with hundreds of layers, taking them by loss saved a byte is within one layer of its best.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tasks.compression.grid import Grid

ERRORS_FILE = "layer_errors.json"


def layer_errors(folder: Path) -> dict[str, float]:
    """Nats of divergence a token that the rounding of each layer is predicted to cost, by the layer's name."""
    errors: dict[str, float] = json.loads((folder / ERRORS_FILE).read_text(encoding="utf-8"))
    return errors


def layers_within_bytes(
    errors: Mapping[str, float], grids: Mapping[str, Grid], budget_bytes: float
) -> tuple[str, ...]:
    """The layers to keep at 8 bits so that all linear layers together take at most `budget_bytes`, by name.

    Args:
        errors: predicted divergence of each layer at 4 bits, nats a token.
        grids: every layer at 4 bits.
        budget_bytes: for integers, scales and zero points; where even 4 bits everywhere take more, no layer is kept.
    """
    spent = float(sum(grid.stored_bytes for grid in grids.values()))
    kept = []
    for name in by_worth(errors, grids):
        extra = _extra_bytes(grids[name])
        if spent + extra <= budget_bytes:
            spent += extra
            kept.append(name)
    return tuple(sorted(kept))


def layers_within_divergence(
    errors: Mapping[str, float], grids: Mapping[str, Grid], budget_nats: float
) -> tuple[str, ...]:
    """The fewest bytes at 8 bits with which the predicted divergence is at most `budget_nats` a token, by name."""
    left = sum(errors.values())
    kept = []
    for name in by_worth(errors, grids):
        if left <= budget_nats:
            break
        left -= errors[name]
        kept.append(name)
    return tuple(sorted(kept))


def by_worth(errors: Mapping[str, float], grids: Mapping[str, Grid]) -> Sequence[str]:
    """The layers' names, the most divergence saved by a byte first."""
    return sorted(errors, key=lambda name: errors[name] / _extra_bytes(grids[name]), reverse=True)


def _extra_bytes(grid: Grid) -> float:
    """What 8 bits with one scale an output take more than the grid."""
    outputs = grid.codes.shape[0]
    eight = grid.codes.size + outputs * (2 + (grid.zeros is not None))
    return float(eight - grid.stored_bytes)
