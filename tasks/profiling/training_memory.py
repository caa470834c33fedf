"""The memory that training takes, in closed form."""

from collections.abc import Collection
from dataclasses import dataclass

from configs.training import LoraSettings, TrainingSettings
from tasks.models.checkpoint import Architecture
from tasks.profiling.matrices import Matrix, layer_names, linear_matrices
from tasks.profiling.weight_memory import plain_bytes
from tasks.store.record import Record

NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
"""Bits a weight under NF4 with double quantization (Dettmers et al. 2023, QLoRA, section 3)."""

_STATE_BITS = {32: 32.0, 8: 8 + 32 / 256}
"""Bits a moment: in 8 bits, blocks of 256 share a scale."""

_GRID_BYTES = 2 + 1 + 4 + 4
"""Of a frozen scale and its zero point: as they are stored, and in f32."""

_LOGITS, _DISTILLED_LOGITS = 3, 7
"""Copies of a chunk of logits, f32: of cross-entropy; of a divergence, which has a teacher's and both logarithms."""

_RUNTIME_BYTES = 45 * 2**20
"""What torch keeps beside what recovery was counted to: measured, with both arithmetics and all ways to save memory."""

CHUNK_TOKENS = 128
"""Tokens whose logits exist at once in our losses (`tasks.training.losses`): 24 MiB of float32 at V = 49,152."""


@dataclass(frozen=True)
class TrainedScales:
    """What recovery trains: the scales of the integers of all linear layers.

    Attributes:
        count: of the scales.
    """

    count: int
    label = "recovery"


class TrainingBudget(Record):
    """Predicted memory of training, bytes.

    Attributes:
        base_bytes: the frozen weights, and integers, scales and zero points where scales are trained; 0 where everything is trained.
        trained_bytes: the trained weights, f32.
        gradients_bytes: their gradients, f32.
        optimizer_bytes: AdamW's two moments, f32 or 8 bits.
        activations_bytes: what the backward pass needs, and one chunk of logits.
        total_bytes: the sum with the holes in memory, or what loading takes where that is more: the predicted peak.
    """

    base_bytes: int
    trained_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    total_bytes: int


def lora_parameters(architecture: Architecture, lora: LoraSettings) -> int:
    """Trained values of an adapter: rank * (inputs + outputs) a target; DoRA adds one for each output.

    LoRA: Hu et al. 2021, arXiv:2106.09685. DoRA: Liu et al. 2024, arXiv:2402.09353. The rule of thumb 2 * hidden * rank a
    projection holds for square ones only: with grouped keys and values, and in the MLP, it is wrong by the ratio of the two sides.

    Raises:
        ValueError: a target that this decoder does not have.
    """
    matrices = {matrix.name: matrix for matrix in linear_matrices(architecture)}
    if not isinstance(lora.target_modules, str) and (
        unknown := sorted(set(lora.target_modules) - matrices.keys())
    ):
        raise ValueError(f"target_modules names {', '.join(unknown)}; this decoder has {', '.join(matrices)}")
    adapted = [matrices[name.rsplit(".", 1)[-1]] for name in layer_names(architecture) if lora.adapts(name)]
    magnitudes = sum(matrix.outputs for matrix in adapted) if lora.method == "dora" else 0
    return sum(lora.rank * (matrix.inputs + matrix.outputs) for matrix in adapted) + magnitudes


def trained_scales(
    architecture: Architecture, group_size: int, channel_layers: Collection[str] = ()
) -> TrainedScales:
    """Scales of a model's linear layers: one for each group of inputs of every output.

    Args:
        architecture: of the model.
        group_size: inputs that share a scale; -1: all of a channel.
        channel_layers: whole names of layers with one scale a channel all the same.
    """
    matrices = {matrix.name: matrix for matrix in linear_matrices(architecture)}
    count = 0
    for name in layer_names(architecture):
        matrix = matrices[name.rsplit(".", 1)[-1]]
        is_per_channel = group_size == -1 or name in channel_layers
        count += matrix.outputs * (1 if is_per_channel else matrix.inputs // group_size)
    return TrainedScales(count)


def training_budget(
    architecture: Architecture,
    training: TrainingSettings,
    trained: LoraSettings | TrainedScales | None,
    *,
    logit_tokens: int,
    recomputed: bool = False,
    fragmented: float = 1.0,
    loaded_here: bool = True,
) -> TrainingBudget:
    """Predict the peak of training an adapter, or scales, on a frozen base, or all weights.

    Args:
        architecture: of the model that is trained.
        training: batch, sequence length and autocast.
        trained: the adapter or the scales; None: every parameter.
        logit_tokens: tokens whose logits exist at once: the chunk of the loss, or the whole batch.
        recomputed: activations are computed again (gradient checkpointing): of every layer but one, its input alone is kept.
        fragmented: growth over what is in use, where freed memory is not given back.
        loaded_here: weights are read into the memory that trains; a GPU gets them as they are trained.

    Raises:
        ValueError: a target that this decoder does not have.
    """
    count = trained_parameters(architecture, trained)
    parts = {
        "base_bytes": _base_bytes(architecture, training, trained),
        "trained_bytes": 4 * count,
        "gradients_bytes": 4 * count,
        "optimizer_bytes": plain_bytes(2 * count, _STATE_BITS[training.optimizer_bits]),
        "activations_bytes": _activations_bytes(architecture, training, trained, logit_tokens, recomputed),
    }
    loading = _loading_bytes(architecture, training, trained) if loaded_here else 0
    return TrainingBudget(**parts, total_bytes=max(round(fragmented * sum(parts.values())), loading))


def trained_parameters(architecture: Architecture, trained: LoraSettings | TrainedScales | None) -> int:
    """Values that the optimizer moves.

    Raises:
        ValueError: a target that this decoder does not have.
    """
    if trained is None:
        return architecture.parameters
    return trained.count if isinstance(trained, TrainedScales) else lora_parameters(architecture, trained)


def _base_bytes(
    architecture: Architecture, training: TrainingSettings, trained: LoraSettings | TrainedScales | None
) -> int:
    """An adapter's base in the type of the arithmetic, QLoRA's linear layers in NF4.

    Recovery's linear layers have the teacher's weights in that type, and integers beside them; all else is in f32.
    """
    if trained is None:
        return 0
    linear = sum(matrix.elements for matrix in linear_matrices(architecture))
    if isinstance(trained, TrainedScales):
        teacher = (2 if training.autocast == "bf16" else 4) * linear
        return teacher + 4 * (architecture.parameters - linear) + linear + _GRID_BYTES * trained.count
    bits = 16 if training.autocast == "bf16" else 32
    linear = linear if trained.method == "qlora" else 0
    return plain_bytes(linear, NF4_BITS) + plain_bytes(architecture.parameters - linear, bits)


def _loading_bytes(
    architecture: Architecture, training: TrainingSettings, trained: LoraSettings | TrainedScales | None
) -> int:
    """Recovery reads all weights in f32 beside its integers; a checkpoint's file stays mapped until all are converted or copied."""
    if not isinstance(trained, TrainedScales):
        return 0
    linear = sum(matrix.elements for matrix in linear_matrices(architecture))
    loaded = 4 * architecture.parameters + linear + _GRID_BYTES * trained.count
    if architecture.dtype != "F32":
        loaded = max(loaded, (4 + 2) * architecture.parameters)
    elif training.autocast == "bf16":
        loaded += 2 * linear + 4 * (architecture.parameters - linear)
    return loaded + _RUNTIME_BYTES


def _activations_bytes(
    architecture: Architecture,
    training: TrainingSettings,
    trained: LoraSettings | TrainedScales | None,
    logit_tokens: int,
    recomputed: bool,
) -> int:
    """Values kept for the backward pass, and copies of a chunk of logits.

    A layer keeps, for each token: both norms' inputs in f32; the inputs of its linear layers, which peft copies for each of its own
    where the arithmetic is not f32; queries, keys and values after the rotary embedding, the latter two repeated for their queries,
    and the attention output; gate, up and the activated gate. Packed sequences add a mask. DoRA keeps the two outputs of every layer
    that it scales, and what the norm of its weights is taken of. Trained scales keep the weights that were computed with them; their
    inputs are copied by autocast for each linear layer, and so is the head, once for the teacher and once for the student.
    """
    element_bytes = 2 if training.autocast == "bf16" else 4
    tokens = training.batch_sequences * training.sequence_tokens
    hidden, intermediate = architecture.hidden, architecture.intermediate
    of_scales = isinstance(trained, TrainedScales)
    adapted = [] if trained is None else _trained_in_a_layer(architecture, trained)
    inputs = 2 * hidden + intermediate
    if element_bytes == 2 and adapted:
        inputs = sum(each.inputs for each in adapted)
    kept = inputs + 4 * architecture.heads * architecture.head_dim + 3 * intermediate
    layer = (
        tokens * (2 * hidden * 4 + kept * element_bytes) + tokens * training.sequence_tokens * element_bytes
    )
    if isinstance(trained, LoraSettings) and trained.method == "dora":
        layer += sum(2 * tokens * each.outputs * element_bytes + 4 * each.inputs**2 for each in adapted)
    if of_scales:
        layer += element_bytes * sum(each.outputs * each.inputs for each in adapted)
    layers = layer if recomputed else architecture.layers * layer
    starts = architecture.layers * tokens * hidden * (4 if of_scales else element_bytes) if recomputed else 0
    logits = (_DISTILLED_LOGITS if of_scales else _LOGITS) * logit_tokens * architecture.vocabulary * 4
    if not of_scales:
        return layers + starts + logits
    heads = 2 * 2 * architecture.vocabulary * hidden if element_bytes == 2 else 0
    return layers + starts + heads + logits + _RUNTIME_BYTES


def _trained_in_a_layer(architecture: Architecture, trained: LoraSettings | TrainedScales) -> list[Matrix]:
    """On average, where not all layers are adapted alike: matrices of the first adapted ones; scales are of all."""
    matrices = {matrix.name: matrix for matrix in linear_matrices(architecture)}
    if isinstance(trained, TrainedScales):
        return list(matrices.values())
    names = [name for name in layer_names(architecture) if trained.adapts(name)]
    return [matrices[name.rsplit(".", 1)[-1]] for name in names[: len(names) // architecture.layers]]
