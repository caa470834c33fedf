"""One phase of making an artifact: what it holds at once."""

from typing import Literal

from tasks.store.record import Record

PhaseName = Literal["export", "exchange", "statistics", "importance", "grids", "compress", "round"]


class BuildPhase(Record):
    """What one phase of a build holds at once, bytes.

    Attributes:
        name: which.
        source_bytes: full-precision weights, mapped or read.
        copies_bytes: working copies of them: converted, transposed, packed.
        result_bytes: the weights that are being made.
        activations_bytes: of a forward pass over one calibration text.
        runtime_bytes: graphs and scratch of the libraries.
        total_bytes: the sum: growth over the process before.
    """

    name: PhaseName
    source_bytes: int
    copies_bytes: int = 0
    result_bytes: int = 0
    activations_bytes: int = 0
    runtime_bytes: int
    total_bytes: int


def build_phase(
    name: PhaseName, *, source: int, copies: int = 0, result: int = 0, activations: int = 0, runtime: int
) -> BuildPhase:
    """A phase from its parts, in bytes; see `BuildPhase`."""
    return BuildPhase(
        name=name,
        source_bytes=source,
        copies_bytes=copies,
        result_bytes=result,
        activations_bytes=activations,
        runtime_bytes=runtime,
        total_bytes=source + copies + result + activations + runtime,
    )
