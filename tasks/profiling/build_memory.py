"""The memory that making an artifact takes, in closed form: what each phase of a build holds at once.

A build reads full-precision weights from a mapped file, whose pages count as resident once they were read; holds what it makes of
them; and needs a working copy of some. Which, depends on the library:

    OpenVINO export     traces the checkpoint: the weights stay in the mapped file, the traced graph grows with the layers
    OpenVINO exchange   puts other weights into a graph of the same shape: one tensor at a time, mapped and read
    OpenVINO statistics (calibrated formats) runs the exported model: the mapped file, the plugin's packed copy of it, its table in f32
    GPTQ importance     (either engine) the checkpoint, and what a backward pass over two texts keeps; output_feedback: pairs of outputs
    GPTQ grids          the checkpoint, its changed layers (a written page of a mapped file is a copy), a byte a rounded weight, pairs
    source's grids      (either engine) the checkpoint, a byte a kept weight, copies of the largest matrix
    OpenVINO compress   the mapped file and the compressed weights; calibrated ones again, to nearest, to compare (all at worst)
    ONNX export         the mapped checkpoint, and the output head transposed
    ONNX rounding       the mapped f32 graph, the rounded weights, and an f32 copy of the largest matrix
    vLLM rounding       the mapped checkpoint, the packed weights twice, some copies of the largest matrix while its scales are fitted

Figures are growth over a process that has the libraries imported; `LIBRARIES_BYTES` is what those take. Constants of the
libraries were measured once, each build in a process of its own, on two shapes: 30 layers of 576 with a tied table of 49,152 rows,
and 8 layers of 1,024 with the same table untied (docs/log.md has the table). The exchange
is counted, not measured alone; GPTQ's two are counted, too, and are 7 % above the measured peak of the first shape.
"""

from collections.abc import Sequence

from configs.engine import EngineName
from configs.weights import WeightSettings
from tasks.models.checkpoint import Architecture
from tasks.profiling.build_phase import BuildPhase, PhaseName, build_phase
from tasks.profiling.grid_memory import FITTING_COPIES, TORCH_BYTES, grid_phases, pairs_bytes
from tasks.profiling.matrices import linear_matrices
from tasks.profiling.weight_memory import weight_bytes

# What other stages read; they read it here.
__all__ = [
    "LIBRARIES_BYTES", "BuildPhase", "PhaseName", "build_phases", "candidate_phases", "exchanged_phases", "pairs_bytes", "peak_bytes",
    "text_tokens",
]  # fmt: skip

_MIB = 2**20

LIBRARIES_BYTES: dict[EngineName, int] = {
    "transformers": 450 * _MIB,
    "openvino": 970 * _MIB,
    "onnxruntime": 920 * _MIB,
    "vllm": 450 * _MIB,
}
"""Resident size of a process that has imported what builds for an engine: torch, transformers, and the engine's own tools."""

_TRACED_LAYER_BYTES = 5 * _MIB  # nodes of the traced graph, before and after its conversion
_TRACING_BYTES = 130 * _MIB  # tracer, converter, tokenizer and detokenizer as graphs
_COMPRESSING_BYTES = 98 * _MIB  # NNCF's graph and the plugin that folds constants
_CALIBRATING_BYTES = 95 * _MIB  # tokenizer and dataset, over compressing
_ONNX_EXPORTING_BYTES = 115 * _MIB
_ONNX_ROUNDING_BYTES = 25 * _MIB

MAX_CALIBRATION_TOKENS = 256  # of each calibration text that is fed
_CHARACTERS_A_TOKEN = 4  # of English prose


def build_phases(
    architecture: Architecture,
    engine: EngineName,
    weights: WeightSettings,
    *,
    calibration_tokens: int = MAX_CALIBRATION_TOKENS,
) -> tuple[BuildPhase, ...]:
    """The phases that make a format's artifact from its parent: the checkpoint, or (OpenVINO) the f32 export.

    Args:
        architecture: of the checkpoint.
        engine: the artifact is for; transformers serves the checkpoint and builds nothing.
        weights: the format.
        calibration_tokens: of the longest calibration text that is fed at once.

    Raises:
        ValueError: the shape of the model is not covered by the formulas.
    """
    match engine:
        case "openvino" if weights.bits == 32:
            return (_traced(architecture),)
        case "openvino":
            compress = _compressed(architecture, weights)
            if weights.is_from_grids or not weights.reads_text:
                return (*grid_phases(architecture, weights, calibration_tokens), compress)
            return (_statistics(architecture, calibration_tokens), compress)
        case "onnxruntime":
            before = grid_phases(architecture, weights, calibration_tokens)
            export = _exported(architecture)
            return (
                (*before, export)
                if weights.bits == 32
                else (*before, export, _rounded(architecture, weights))
            )
        case "vllm" if weights.bits in (4, 8):
            before = grid_phases(architecture, weights, calibration_tokens)
            return (*before, _packed(architecture, weights))
        case _:
            return ()


def candidate_phases(
    architecture: Architecture,
    engine: EngineName,
    weights: WeightSettings,
    *,
    calibration_tokens: int = MAX_CALIBRATION_TOKENS,
) -> tuple[BuildPhase, ...]:
    """Every phase from the checkpoint on: those of the f32 export too, where the format is made from one."""
    own = build_phases(architecture, engine, weights, calibration_tokens=calibration_tokens)
    if engine == "openvino" and weights.bits != 32:
        return (_traced(architecture), *own)
    return own


def exchanged_phases(
    architecture: Architecture,
    engine: EngineName,
    weights: WeightSettings,
    *,
    calibration_tokens: int = MAX_CALIBRATION_TOKENS,
) -> tuple[BuildPhase, ...]:
    """`candidate_phases` for OpenVINO where a graph of the same shape is there and only gets other weights: nothing is traced."""
    phases = candidate_phases(architecture, engine, weights, calibration_tokens=calibration_tokens)
    return (_exchanged(architecture), *(phase for phase in phases if phase.name != "export"))


def text_tokens(texts: Sequence[str]) -> int:
    """About the tokens that the longest of some calibration texts is fed as."""
    longest = max((len(text) for text in texts), default=0)
    return min(MAX_CALIBRATION_TOKENS, -(-longest // _CHARACTERS_A_TOKEN))


def peak_bytes(phases: tuple[BuildPhase, ...]) -> int:
    """The largest phase; 0 where nothing is built."""
    return max((phase.total_bytes for phase in phases), default=0)


def _traced(architecture: Architecture) -> BuildPhase:
    """A checkpoint in another type than f32 is converted while it is loaded, and both are there."""
    stored = weight_bytes(architecture, WeightSettings(), "transformers")
    return build_phase(
        "export",
        source=stored,
        copies=0 if architecture.dtype == "F32" else 4 * architecture.parameters,
        runtime=_TRACING_BYTES + architecture.layers * _TRACED_LAYER_BYTES,
    )


def _exchanged(architecture: Architecture) -> BuildPhase:
    """One tensor at a time: its pages of the mapped file, and the numbers that are compared or written."""
    widest = max(matrix.outputs * matrix.inputs for matrix in linear_matrices(architecture))
    largest = 4 * max(widest, architecture.vocabulary * architecture.hidden)
    return build_phase("exchange", source=largest, copies=largest, runtime=0)


def _statistics(architecture: Architecture, tokens: int) -> BuildPhase:
    """One pass at a time through the compiled f32 model, with the inputs of every linear layer as outputs."""
    full = 4 * architecture.parameters
    inputs = sum(matrix.inputs * matrix.count for matrix in linear_matrices(architecture))
    return build_phase(
        "statistics",
        source=full,
        copies=full + 4 * architecture.vocabulary * architecture.hidden,
        activations=4 * tokens * (inputs + 2 * architecture.vocabulary),
        runtime=_COMPRESSING_BYTES + _CALIBRATING_BYTES,
    )


def _compressed(architecture: Architecture, weights: WeightSettings) -> BuildPhase:
    result = weight_bytes(architecture, weights, "openvino")
    integers = sum(matrix.elements for matrix in linear_matrices(architecture))
    # What NNCF calibrated is compared with the same format rounded to nearest.
    times = 1 if weights.is_from_grids or weights.calibration == "none" else 2
    return build_phase(
        "compress",
        source=times * 4 * architecture.parameters,
        copies=integers if weights.is_from_grids else 0,
        result=times * result,
        runtime=_COMPRESSING_BYTES + (_CALIBRATING_BYTES if weights.reads_text else 0),
    )


def _exported(architecture: Architecture) -> BuildPhase:
    stored = weight_bytes(architecture, WeightSettings(), "transformers")
    head = 4 * architecture.vocabulary * architecture.hidden
    converted = 0 if architecture.dtype == "F32" else 4 * architecture.parameters
    return build_phase("export", source=stored, copies=converted + head, runtime=_ONNX_EXPORTING_BYTES)


def _rounded(architecture: Architecture, weights: WeightSettings) -> BuildPhase:
    widest = max(matrix.outputs * matrix.inputs for matrix in linear_matrices(architecture))
    return build_phase(
        "round",
        source=weight_bytes(architecture, WeightSettings(), "onnxruntime"),
        copies=4 * max(widest, architecture.vocabulary * architecture.hidden),
        result=weight_bytes(architecture, weights, "onnxruntime"),
        runtime=_ONNX_ROUNDING_BYTES,
    )


def _packed(architecture: Architecture, weights: WeightSettings) -> BuildPhase:
    """The mapped checkpoint, the packed result and once more as it is written, and of the widest layer copies while it is fitted."""
    widest = max(matrix.outputs * matrix.inputs for matrix in linear_matrices(architecture))
    stages = 1 if weights.is_from_grids else FITTING_COPIES
    return build_phase(
        "round",
        source=weight_bytes(architecture, WeightSettings(), "transformers"),
        copies=stages * 4 * widest,
        result=2 * weight_bytes(architecture, weights, "vllm"),
        runtime=TORCH_BYTES,
    )
