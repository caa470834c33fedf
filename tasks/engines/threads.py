"""The one place that sets thread counts.

Spinning thread pools of several libraries on the same cores cost ten times, not twice: every library gets the
same number, and idle OpenMP threads sleep instead of spinning. OpenVINO and ONNX Runtime take their count
with each compiled model; `openvino_threads` has OpenVINO's properties.
"""

import os
import sys

_ENVIRONMENT = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "RAYON_NUM_THREADS",
)


def set_threads(threads: int) -> None:
    """Give every compute library `threads` threads, in this process and its children.

    The environment reaches libraries that are not loaded yet, threadpoolctl and torch's own call those that
    are.
    """
    if threads < 1:
        raise ValueError(f"threads is {threads}; it must be at least 1")
    os.environ.update(dict.fromkeys(_ENVIRONMENT, str(threads)))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if "numpy" in sys.modules:
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        threadpool_limits(limits=threads)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)


def openvino_threads(threads: int) -> dict[str, int | str]:
    """Properties of a compiled OpenVINO model: one stream on `threads` threads."""
    return {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
