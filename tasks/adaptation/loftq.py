"""LoftQ: an adapter that starts by repairing what NF4 lost (Li et al. 2023, arXiv:2310.08659), with one iteration.

A is the right, B the left half of the best rank-r approximation of W - NF4(W), so that training starts near the full-precision
model instead of at its rounding. peft (0.21) has the same in `replace_lora_weights_loftq`, for CUDA only.

The repair belongs to the rounded base. The adapter that is written is for the full-precision one, like any other: the
repair is taken out again, as a second half of its rank, so that W plus the written adapter is W where nothing was learned.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from tasks.models.checkpoint_folder import weight_files

Repair = dict[str, tuple[Tensor, Tensor]]
_OVERSAMPLING, _POWER_ITERATIONS = 8, 4


@torch.no_grad()
def start_at_repair(model: Any, checkpoint: Path) -> Repair:
    """Set every adapter of a peft model on an NF4 base to the repair of its layer.

    Args:
        model: of peft, its linear layers in bitsandbytes' NF4, before any forward pass: one in evaluation mode packs the weights anew.
        checkpoint: folder with the weights that were rounded.

    Returns:
        (A, B) of every adapted layer by its name in the base model.
    """
    import bitsandbytes.functional as bnb
    from peft.tuners.lora import LoraLayer

    weights = _Weights(checkpoint)
    repair: Repair = {}
    for name, module in model.get_base_model().named_modules():
        if not isinstance(module, LoraLayer):
            continue
        stored = module.get_base_layer().weight
        residue_NK = (
            weights[f"{name}.weight"].float()
            - bnb.dequantize_4bit(stored.data, stored.quant_state).float().cpu()
        )
        a_RK, b_NR = _low_rank(residue_NK / module.scaling["default"], module.r["default"])
        module.lora_A["default"].weight.copy_(a_RK)
        module.lora_B["default"].weight.copy_(b_NR)
        repair[name] = (a_RK, b_NR)
    return repair


@torch.no_grad()
def take_out_repair(model: Any, repair: Repair) -> None:
    """Turn the trained adapter into one for the full-precision base: B A - B0 A0, of twice the rank, at the same scale."""
    from peft.tuners.lora import LoraLayer

    for name, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            a_RK, b_NR = (each.to(module.lora_A["default"].weight.device) for each in repair[name])
            _replace(module.lora_A, torch.cat([module.lora_A["default"].weight, a_RK]))
            _replace(module.lora_B, torch.cat([module.lora_B["default"].weight, -b_NR], dim=1))
    settings = model.peft_config["default"]
    settings.lora_alpha *= 2**0.5 if settings.use_rslora else 2
    settings.r *= 2


def _replace(factors: nn.ModuleDict, weight: Tensor) -> None:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight)
    factors["default"] = linear


def _low_rank(matrix_NK: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors A (R, K) and B (N, R) of the best approximation of a rank; randomized (Halko et al. 2011), so seeded."""
    columns = min(rank + _OVERSAMPLING, *matrix_NK.shape)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        left_NR, values_R, right_KR = torch.svd_lowrank(matrix_NK, columns, _POWER_ITERATIONS)
    root_R = values_R[:rank].sqrt()
    return (right_KR[:, :rank] * root_R).T.contiguous(), left_NR[:, :rank] * root_R


class _Weights:
    """Tensors of a checkpoint, one at a time."""

    def __init__(self, folder: Path) -> None:
        self._file_of: dict[str, Path] = {}
        for name in weight_files(folder):
            with safe_open(folder / name, framework="pt") as file:
                self._file_of |= dict.fromkeys(file.keys(), folder / name)

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self._file_of[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor
