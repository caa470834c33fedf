"""The architecture of a checkpoint, read from its config and its safetensors headers; torch is not needed."""

from collections import Counter

from tasks.models.checkpoint_folder import read_json, weight_files
from tasks.models.errors import ModelSourceError
from tasks.models.safetensors_file import TensorInfo, read_tensors
from tasks.store.artifact import Artifact
from tasks.store.record import Record


class Architecture(Record):
    """The figures that memory and compute formulas need.

    Attributes:
        model_type: family, as transformers names it ("llama").
        layers: decoder layers.
        hidden: width of the residual stream.
        intermediate: width inside the MLP.
        heads: query heads.
        kv_heads: key and value heads; fewer than heads: GQA; 1: MQA.
        head_dim: values a head.
        vocabulary: rows of the embedding.
        tied_embeddings: the output projection is the embedding.
        parameters: stored parameters; a tied matrix is counted once.
        context_tokens: largest context.
        dtype: of most parameters, as safetensors names it ("F32", "BF16").
    """

    model_type: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied_embeddings: bool
    parameters: int
    context_tokens: int
    dtype: str


def read_architecture(checkpoint: Artifact) -> Architecture:
    """Read the architecture of a checkpoint artifact.

    Raises:
        ModelSourceError: config.json lacks a figure of a decoder-only model, or the weights are not whole.
    """
    path = checkpoint.folder / "config.json"
    config = read_json(path)

    def figure(name: str) -> int:
        if not isinstance(value := config.get(name), int):
            raise ModelSourceError(
                f"{path}: {name} is {value!r}; expected a number (a decoder-only transformer)"
            )
        return value

    tensors: dict[str, TensorInfo] = {}
    for name in weight_files(checkpoint.folder):
        tensors |= read_tensors(checkpoint.folder / name)
    elements: Counter[str] = Counter()
    tied = bool(config.get("tie_word_embeddings", "lm_head.weight" not in tensors))
    for name, tensor in tensors.items():
        if not (tied and name == "lm_head.weight"):
            elements[tensor.dtype] += tensor.elements
    hidden, heads = figure("hidden_size"), figure("num_attention_heads")
    return Architecture(
        model_type=str(config.get("model_type", "unknown")),
        layers=figure("num_hidden_layers"),
        hidden=hidden,
        intermediate=figure("intermediate_size"),
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or hidden // heads,
        vocabulary=figure("vocab_size"),
        tied_embeddings=tied,
        parameters=elements.total(),
        context_tokens=figure("max_position_embeddings"),
        dtype=elements.most_common(1)[0][0],
    )
