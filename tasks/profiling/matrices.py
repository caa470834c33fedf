"""The weight matrices of a decoder-only transformer, by name and shape."""

from dataclasses import dataclass

from tasks.models.checkpoint import Architecture


@dataclass(frozen=True)
class Matrix:
    """One kind of linear weight: `outputs` rows of `inputs` values, `count` times in the model."""

    name: str
    outputs: int
    inputs: int
    count: int

    @property
    def elements(self) -> int:
        """Weights of all of them."""
        return self.outputs * self.inputs * self.count

    @property
    def rows(self) -> int:
        """Output channels of all of them."""
        return self.outputs * self.count


def linear_matrices(architecture: Architecture) -> tuple[Matrix, ...]:
    """The projections of all layers: attention with grouped keys and values, gated MLP."""
    hidden, intermediate, layers = architecture.hidden, architecture.intermediate, architecture.layers
    queries = architecture.heads * architecture.head_dim
    keys = architecture.kv_heads * architecture.head_dim
    return (
        Matrix("q_proj", queries, hidden, layers),
        Matrix("k_proj", keys, hidden, layers),
        Matrix("v_proj", keys, hidden, layers),
        Matrix("o_proj", hidden, queries, layers),
        Matrix("gate_proj", intermediate, hidden, layers),
        Matrix("up_proj", intermediate, hidden, layers),
        Matrix("down_proj", hidden, intermediate, layers),
    )


def layer_names(architecture: Architecture) -> tuple[str, ...]:
    """Whole names of the linear layers as Llama and kin have them: "model.layers.0.mlp.up_proj"."""
    parts = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
             "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip
    return tuple(f"model.layers.{layer}.{part}" for layer in range(architecture.layers) for part in parts)


def embedding_matrices(architecture: Architecture) -> tuple[Matrix, ...]:
    """The token embedding and, where it is not the same matrix, the output head."""
    embedding = Matrix("embed_tokens", architecture.vocabulary, architecture.hidden, 1)
    if architecture.tied_embeddings:
        return (embedding,)
    return (embedding, Matrix("lm_head", architecture.vocabulary, architecture.hidden, 1))


def other_parameters(architecture: Architecture) -> int:
    """Norm weights and biases: what is never quantized.

    Raises:
        ValueError: the matrices hold more weights than the model has: its shape is not this decoder's.
    """
    matrices = linear_matrices(architecture) + embedding_matrices(architecture)
    others = architecture.parameters - sum(matrix.elements for matrix in matrices)
    if others < 0:
        raise ValueError(
            f"a {architecture.model_type} of {architecture.parameters:,} parameters is not a decoder "
            f"with a gated MLP in every layer: its matrices alone would hold {-others:,} more; the memory "
            "formulas do not cover it"
        )
    return others
