"""A student made of some of its teacher's layers: which ones (tasks/training/layers.py makes the smaller checkpoint).

Layers are ranked by block influence (ShortGPT, Men et al. 2024, arXiv:2403.03853): 1 - the mean cosine
between what enters a block and what leaves it. A block that hardly turns the residual stream is dropped
first. The first and the last block are always kept: they read the embedding and write for the output head.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from tasks.store.artifact import Artifact
from tasks.training.checkpoint import load_model, load_tokenizer
from tasks.training.error import TrainingError
from tasks.training.layers import layers_of

_CALIBRATION_TOKENS = 2048


def choose_layers(checkpoint: Artifact, fraction: float, texts: Sequence[str]) -> tuple[int, ...]:
    """The layers a student keeps: `int(fraction * layers)` of them, at least two, by block influence.

    Args:
        checkpoint: the teacher.
        fraction: of its layers.
        texts: calibration text; 2,048 tokens of it are used.

    Raises:
        TrainingError: the teacher has fewer than 3 layers, or there is no text.
    """
    influence = block_influence(checkpoint, texts)
    if len(influence) < 3:
        raise TrainingError(f"the teacher has {len(influence)} layers; a shallower student needs at least 3")
    keep = max(2, int(fraction * len(influence)))
    inside = sorted(range(1, len(influence) - 1), key=lambda layer: influence[layer], reverse=True)
    return tuple(sorted((0, len(influence) - 1, *inside[: keep - 2])))


@torch.inference_mode()
def block_influence(checkpoint: Artifact, texts: Sequence[str]) -> tuple[float, ...]:
    """1 - mean cosine of each block's input and output over the calibration tokens, one value a layer."""
    ids = load_tokenizer(checkpoint.folder)("\n\n".join(texts), add_special_tokens=False)["input_ids"]
    if not ids:
        raise TrainingError("there is no calibration text to choose layers on")
    tokens = torch.tensor(ids[:_CALIBRATION_TOKENS])
    model = load_model(checkpoint.folder, torch.bfloat16)
    sums = torch.zeros(len(layers_of(model)), dtype=torch.float64)
    for window in torch.split(tokens, 512):
        streams = model.base_model(
            input_ids=window[None], use_cache=False, output_hidden_states=True
        ).hidden_states
        sums += _cosine_distances(streams)
    return tuple((sums / len(tokens)).tolist())


def _cosine_distances(streams: tuple[Tensor, ...]) -> Tensor:
    return torch.stack(
        [
            (1 - torch.cosine_similarity(a.float(), b.float(), dim=-1)).sum().double()
            for a, b in pairwise(streams)
        ]
    )
