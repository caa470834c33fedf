"""How fast this machine multiplies matrices in float32 and in bfloat16.

That a processor has bf16 instructions does not make them the faster ones: with AMX, or on a GPU, they are several times as fast as
float32; an Intel Xeon with AVX512-BF16 alone multiplied at 160 GFLOPS in bf16 and 300 in float32, an AMD EPYC the other way round.
"""

import time

from tasks.store.record import Record

_TOKENS, _WIDTH = 512, 1024
_ROUNDS = 7


class MultiplyRates(Record):
    """Best of some products of (512, 1024) and (1024, 1024), where torch trains: the GPU if there is one.

    Attributes:
        f32_gflops: float32, 10^9 operations a second.
        bf16_gflops: bfloat16.
    """

    f32_gflops: float
    bf16_gflops: float


def multiply_rates() -> MultiplyRates:
    """Measure it with the threads that torch has: about 0.1 s, the two types in turn."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    best_s = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    pairs = {
        dtype: (
            torch.ones(_TOKENS, _WIDTH, dtype=dtype, device=device),
            torch.ones(_WIDTH, _WIDTH, dtype=dtype, device=device),
        )
        for dtype in best_s
    }
    for _ in range(_ROUNDS):
        for dtype, (inputs, weights) in pairs.items():
            began_s = time.perf_counter()
            torch.nn.functional.linear(inputs, weights)
            if device == "cuda":
                torch.cuda.synchronize()
            best_s[dtype] = min(best_s[dtype], time.perf_counter() - began_s)
    operations = 2 * _TOKENS * _WIDTH**2
    return MultiplyRates(
        f32_gflops=operations / best_s[torch.float32] / 1e9,
        bf16_gflops=operations / best_s[torch.bfloat16] / 1e9,
    )
