"""What a measurement depends on besides its inputs: the hardware and the libraries."""

from functools import cache

from tasks.profiling.environment import environment
from tasks.store.digest import digest_of, library_versions

LIBRARIES = (
    "torch", "transformers", "openvino", "openvino-genai", "nncf", "onnxruntime", "onnxruntime-genai", "optimum-intel",
    "peft", "bitsandbytes", "lm-eval", "scipy", "statsmodels",
)  # fmt: skip


@cache
def machine_digest() -> str:
    """Digest of the hardware and the library versions that shape measurements and scores."""
    return digest_of([environment(), library_versions(*LIBRARIES)])
