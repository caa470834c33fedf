"""How much each token, and each pair of outputs, matters at each layer's output: parts of the Fisher information.

To second order, changing a layer's weights by D changes the divergence from the unchanged model by

    1/2 mean over tokens t of sum over outputs o of g(t, o)^2 (D x(t))_o^2

where g is the gradient of log p(y), y drawn from the model's own prediction: the expected g^2 is the curvature of the divergence.
GPTQ takes g as 1; weighting its Hessian by the mean of g^2 over a layer's outputs steers it by what the loss feels (GuidedQuant, Kim et
al., ICML 2025, arXiv:2505.07004), and makes the errors of different layers comparable: they add up to a predicted divergence. The mean
of g g^T says besides which outputs are felt together (`tasks.compression.output_feedback`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tasks.compression.block_inputs import linear_layers
from tasks.compression.output_parts import output_parts
from tasks.engines.freed_memory import return_freed_memory

BATCH_SEQUENCES = 2


@dataclass(frozen=True)
class Curvature:
    """What the loss feels at the outputs of every linear layer, by the layer's name.

    Attributes:
        tokens: mean of g^2 over the outputs, for every token: shape (B * T,).
        outputs: mean over the tokens of g g^T, a part of the outputs each: shapes (n, n); empty where it was not asked for.
    """

    tokens: dict[str, Tensor]
    outputs: dict[str, list[Tensor]] = field(default_factory=dict)


def curvature(model: Any, tokens_BT: Tensor, seed: int, *, of_outputs: bool = False) -> Curvature:
    """Run a text forward and back.

    Args:
        model: a causal language model of transformers, float32; its weights stay frozen.
        tokens_BT: the calibration text.
        seed: of the labels that are drawn.
        of_outputs: pairs of outputs, too.
    """
    layers = linear_layers(model)
    found: dict[str, list[Tensor]] = {name: [] for name in layers}
    pairs = {
        name: [torch.zeros(size, size) for size in output_parts(module.out_features)]
        for name, module in layers.items()
        if of_outputs
    }

    def watch(name: str, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        def keep(slope: Tensor) -> None:
            slope_TN = slope.float().flatten(0, -2)
            found[name].append(slope_TN.square().mean(-1))
            for part_Tn, sum_nn in _parts_of(slope_TN, pairs.get(name, [])):
                sum_nn.addmm_(part_Tn.T, part_Tn, alpha=1 / tokens_BT.numel())

        output.register_hook(keep)  # type: ignore[no-untyped-call]

    hooks = [module.register_forward_hook(partial(watch, name)) for name, module in layers.items()]
    model.requires_grad_(False)
    random = torch.Generator().manual_seed(seed)
    for batch in torch.split(tokens_BT, BATCH_SEQUENCES):
        embedded = model.get_input_embeddings()(batch).requires_grad_(True)
        logits_NV = model(inputs_embeds=embedded, use_cache=False).logits.flatten(0, 1)
        logits_NV.backward(_slope_of_drawn(logits_NV.detach(), random))
        return_freed_memory()  # glibc fills few of the holes that a pass leaves: without, every batch takes a hundred MiB more
    for hook in hooks:
        hook.remove()
    return Curvature({name: torch.cat(parts) for name, parts in found.items()}, pairs)


def _parts_of(slope_TN: Tensor, sums: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    if sums:
        yield from zip(torch.split(slope_TN, [len(each) for each in sums], dim=1), sums, strict=True)


def _slope_of_drawn(logits_NV: Tensor, random: torch.Generator) -> Tensor:
    """Gradient of -log p(y) by the logits, one y drawn from each row's own p: p less 1 at y."""
    p_NV = logits_NV.softmax(-1)
    summed_NV = p_NV.cumsum(-1)  # torch.multinomial would draw V numbers for each y
    drawn_N1 = torch.rand(len(p_NV), 1, generator=random) * summed_NV[:, -1:]  # float32 may not sum to 1
    at_N1 = torch.searchsorted(summed_NV, drawn_N1, right=True)
    return p_NV.scatter_add_(1, at_N1.clamp_(max=p_NV.shape[1] - 1), torch.full((len(p_NV), 1), -1.0))
