"""What goes into every linear layer of a decoder, block by block, while its weights are being changed.

A block's inputs are those that the blocks before it produce as they are now: whoever rounds one block before asking for the next
lets later blocks see, and make good, what the earlier ones lost.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tasks.compression.error import CompressionError

BATCH_SEQUENCES = 8


@dataclass(frozen=True)
class BlockLayers:
    """The linear layers of one decoder block.

    Attributes:
        linears: by full name, "model.layers.0.mlp.up_proj".
        hessians: by the same names: mean over tokens of importance * x x^T, float32, shape (K, K).
    """

    linears: dict[str, nn.Linear]
    hessians: dict[str, Tensor]


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Every linear layer inside the decoder blocks, by name: all but the output head."""
    prefix, blocks = _blocks(model)
    return {
        f"{prefix}.{name}": module for name, module in blocks.named_modules() if isinstance(module, nn.Linear)
    }


@torch.no_grad()
def walk_blocks(model: Any, tokens_BT: Tensor, importance: Mapping[str, Tensor]) -> Iterator[BlockLayers]:
    """Yield the blocks in order; change a block's weights before asking for the next one.

    Args:
        model: a causal language model of transformers, float32, on the CPU.
        tokens_BT: the calibration text. Batches share their masks, so of more than BATCH_SEQUENCES only whole batches are used.
        importance: weight of each token for each layer, by name, shape (B * T,); see `tasks.compression.fisher`.

    Raises:
        CompressionError: the model has no list of decoder blocks.
    """
    prefix, blocks = _blocks(model)
    batches = [
        batch
        for batch in torch.split(tokens_BT, BATCH_SEQUENCES)
        if len(batch) == min(len(tokens_BT), BATCH_SEQUENCES)
    ]
    hidden, keywords = _first_inputs(model, blocks, batches)
    for index, block in enumerate(blocks):
        linears = {
            f"{prefix}.{index}.{name}": module
            for name, module in block.named_modules()
            if isinstance(module, nn.Linear)
        }
        sums = {name: torch.zeros(m.in_features, m.in_features) for name, m in linears.items()}
        for batch, states in enumerate(hidden):
            first = batch * BATCH_SEQUENCES * tokens_BT.shape[1]
            with _collecting(linears, sums, importance, first):
                block(states, **keywords[index])
        tokens = sum(batch.numel() for batch in batches)
        yield BlockLayers(linears, {name: total / tokens for name, total in sums.items()})
        hidden = [_states(block(states, **keywords[index])) for states in hidden]


class _collecting:
    """Hooks that add every layer's weighted x x^T to `sums` while a block runs."""

    def __init__(
        self,
        linears: Mapping[str, nn.Linear],
        sums: dict[str, Tensor],
        importance: Mapping[str, Tensor],
        first: int,
    ) -> None:
        self._linears, self._sums, self._importance, self._first = linears, sums, importance, first

    def __enter__(self) -> None:
        self._hooks = [
            module.register_forward_pre_hook(lambda _, inputs, name=name: self._add(name, inputs[0]))
            for name, module in self._linears.items()
        ]

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _add(self, name: str, inputs: Tensor) -> None:
        inputs_NK = inputs.reshape(-1, inputs.shape[-1]).float()
        weights_N = self._importance[name][self._first : self._first + len(inputs_NK)]
        self._sums[name].addmm_((inputs_NK * weights_N[:, None]).T, inputs_NK)


def _first_inputs(
    model: Any, blocks: nn.ModuleList, batches: Sequence[Tensor]
) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """The hidden states before the first block, and the other arguments of every block (masks, positions)."""
    hidden: list[Tensor] = []
    keywords: list[dict[str, Any]] = [{} for _ in blocks]

    def keep(index: int, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        if index == 0:
            hidden.append(positional[0] if positional else named["hidden_states"])
            if len(hidden) > 1:
                raise _Enough
        keywords[index] = {name: value for name, value in named.items() if name != "hidden_states"}

    hooks = [
        block.register_forward_pre_hook(
            lambda _, positional, named, index=index: keep(index, positional, named), with_kwargs=True
        )
        for index, block in enumerate(blocks)
    ]
    for batch in batches:
        with contextlib.suppress(_Enough):
            model(batch, use_cache=False)
    for hook in hooks:
        hook.remove()
    return hidden, keywords


class _Enough(Exception):
    """The first block's inputs are known: the rest of this forward pass is not needed."""


def _states(output: Any) -> Tensor:
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def _blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise CompressionError(
            f"{type(model).__name__} has no list of decoder blocks; use another calibration than gptq"
        )
    return max(lists, key=lambda named: len(named[1]))
