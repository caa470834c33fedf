"""The memory of rounding layers before an engine's builder sees them: GPTQ's two passes, and a source's own grids."""

from configs.weights import WeightSettings
from tasks.compression.output_parts import output_parts
from tasks.models.checkpoint import Architecture
from tasks.profiling.build_phase import BuildPhase, build_phase
from tasks.profiling.matrices import linear_matrices
from tasks.profiling.weight_memory import weight_bytes

TORCH_BYTES = 100 * 2**20
FITTING_COPIES = 8
"""Of a layer, in f32, while its scales are fitted or its grid is found."""

_BACKWARD_TEXTS = 2
_BLOCK_TEXTS = 8


def grid_phases(architecture: Architecture, weights: WeightSettings, tokens: int) -> tuple[BuildPhase, ...]:
    """The phases before an engine's builder sees a layer; none of formats that it rounds itself.

    Args:
        architecture: of the checkpoint.
        weights: the format.
        tokens: of the longest calibration text that is fed at once.
    """
    if weights.calibration == "gptq":
        return _gptq(architecture, weights, tokens)
    return (_kept(architecture),) if weights.calibration == "source_grid" else ()


def _kept(architecture: Architecture) -> BuildPhase:
    """The checkpoint read, a byte a kept integer, twice while it is written, and of the widest layer the copies that find its grid."""
    matrices = linear_matrices(architecture)
    return build_phase(
        "grids",
        source=weight_bytes(architecture, WeightSettings(), "transformers"),
        copies=FITTING_COPIES * 4 * max(matrix.outputs * matrix.inputs for matrix in matrices),
        result=2 * sum(matrix.elements for matrix in matrices),
        runtime=TORCH_BYTES,
    )


def _gptq(architecture: Architecture, weights: WeightSettings, tokens: int) -> tuple[BuildPhase, BuildPhase]:
    """A backward pass keeps a layer's inputs and products, and the logits four times, in f32."""
    stored = weight_bytes(architecture, WeightSettings(), "transformers")
    converted = 0 if architecture.dtype == "F32" else 4 * architecture.parameters
    linear = sum(matrix.elements for matrix in linear_matrices(architecture))
    kept = architecture.layers * (8 * architecture.hidden + 4 * architecture.intermediate)
    texts = _BACKWARD_TEXTS * tokens
    pairs = pairs_bytes(architecture) if weights.output_feedback else 0
    return (
        build_phase(
            "importance",
            source=stored,
            copies=converted,
            result=pairs,
            activations=texts * 4 * (kept + 4 * architecture.vocabulary),
            runtime=TORCH_BYTES,
        ),
        build_phase(
            "grids",
            source=stored,
            copies=(converted or 4 * linear) + pairs,
            result=linear,
            activations=2 * 4 * _BLOCK_TEXTS * tokens * architecture.hidden,
            runtime=TORCH_BYTES,
        ),
    )


def pairs_bytes(architecture: Architecture) -> int:
    """Pairs (g g^T) of neighbouring outputs of every layer, f32."""
    return sum(
        4 * matrix.count * size**2
        for matrix in linear_matrices(architecture)
        for size in output_parts(matrix.outputs)
    )
