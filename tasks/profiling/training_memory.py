"""The memory that training takes, in closed form."""

from configs.training import LoraSettings, TrainingSettings
from tasks.models.checkpoint import Architecture
from tasks.profiling.matrices import Matrix, layer_names, linear_matrices
from tasks.profiling.weight_memory import plain_bytes
from tasks.store.record import Record

NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
"""Bits a weight under NF4 with double quantization (Dettmers et al. 2023, QLoRA, section 3)."""

_STATE_BITS = {32: 32.0, 8: 8 + 32 / 256}
"""Bits a moment: in 8 bits, blocks of 256 share a scale."""

CHUNK_TOKENS = 128
"""Tokens whose logits exist at once in our losses (`tasks.training.losses`): 24 MiB of float32 at V = 49,152."""


class TrainingBudget(Record):
    """Predicted memory of training, bytes.

    Attributes:
        base_bytes: the frozen weights; 0 where everything is trained.
        trained_bytes: the trained weights, f32.
        gradients_bytes: their gradients, f32.
        optimizer_bytes: AdamW's two moments, f32 or 8 bits.
        activations_bytes: what the backward pass needs, and one chunk of logits.
        total_bytes: the sum: the predicted peak.
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


def training_budget(
    architecture: Architecture,
    training: TrainingSettings,
    lora: LoraSettings | None,
    *,
    logit_tokens: int,
    recomputed: bool = False,
) -> TrainingBudget:
    """Predict the peak of training an adapter on a frozen base, or all weights without `lora`.

    Args:
        architecture: of the model that is trained.
        training: batch, sequence length and autocast.
        lora: the adapter; None: every parameter is trained.
        logit_tokens: tokens whose logits exist at once: the chunk of the loss, or the whole batch.
        recomputed: activations are computed again (gradient checkpointing): of every layer but one, its input alone is kept.

    Raises:
        ValueError: a target that this decoder does not have.
    """
    trained = architecture.parameters if lora is None else lora_parameters(architecture, lora)
    parts = {
        "base_bytes": 0 if lora is None else _base_bytes(architecture, training, lora),
        "trained_bytes": 4 * trained,
        "gradients_bytes": 4 * trained,
        "optimizer_bytes": plain_bytes(2 * trained, _STATE_BITS[training.optimizer_bits]),
        "activations_bytes": _activations_bytes(architecture, training, lora, logit_tokens, recomputed),
    }
    return TrainingBudget(**parts, total_bytes=sum(parts.values()))


def _base_bytes(architecture: Architecture, training: TrainingSettings, lora: LoraSettings) -> int:
    """The frozen base in the type of the arithmetic; QLoRA holds its linear layers in NF4."""
    bits = 16 if training.autocast == "bf16" else 32
    linear = sum(matrix.elements for matrix in linear_matrices(architecture)) if lora.method == "qlora" else 0
    return plain_bytes(linear, NF4_BITS) + plain_bytes(architecture.parameters - linear, bits)


def _activations_bytes(
    architecture: Architecture,
    training: TrainingSettings,
    lora: LoraSettings | None,
    logit_tokens: int,
    recomputed: bool,
) -> int:
    """Values kept for the backward pass, and three copies of a chunk of logits.

    A layer keeps, for each token: both norms' inputs in f32; the inputs of its linear layers, which peft copies for each of its own
    where the arithmetic is not f32; queries, keys and values after the rotary embedding, the latter two repeated for their queries,
    and the attention output; gate, up and the activated gate. Packed sequences add a mask. DoRA keeps the two outputs of every layer
    that it scales, and what the norm of its weights is taken of.
    """
    element_bytes = 2 if training.autocast == "bf16" else 4
    tokens = training.batch_sequences * training.sequence_tokens
    hidden, intermediate = architecture.hidden, architecture.intermediate
    adapted = [] if lora is None else _adapted_in_a_layer(architecture, lora)
    inputs = 2 * hidden + intermediate
    if element_bytes == 2 and adapted:
        inputs = sum(each.inputs for each in adapted)
    kept = inputs + 4 * architecture.heads * architecture.head_dim + 3 * intermediate
    layer = (
        tokens * (2 * hidden * 4 + kept * element_bytes) + tokens * training.sequence_tokens * element_bytes
    )
    if lora is not None and lora.method == "dora":
        layer += sum(2 * tokens * each.outputs * element_bytes + 4 * each.inputs**2 for each in adapted)
    layers = layer if recomputed else architecture.layers * layer
    starts = architecture.layers * tokens * hidden * element_bytes if recomputed else 0
    return layers + starts + 3 * logit_tokens * architecture.vocabulary * 4


def _adapted_in_a_layer(architecture: Architecture, lora: LoraSettings) -> list[Matrix]:
    """On average, where not all layers are adapted alike: matrices of the first adapted ones."""
    matrices = {matrix.name: matrix for matrix in linear_matrices(architecture)}
    names = [name for name in layer_names(architecture) if lora.adapts(name)]
    return [matrices[name.rsplit(".", 1)[-1]] for name in names[: len(names) // architecture.layers]]
