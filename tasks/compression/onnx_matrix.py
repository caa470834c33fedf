"""One matrix as ONNX Runtime's MatMulNBits stores it: rounded to nearest, by HQQ, by k-quant, or from a finished grid.

Rounding to nearest is MLAS's own, the one that onnxruntime.quantization calls; with `symmetric`, a group's scale carries the
sign of its largest weight, so that all 2^bits levels are used.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxruntime.capi._pybind_state import quantize_matmul_4bits, quantize_matmul_8bits

from tasks.compression.error import CompressionError
from tasks.compression.grid import Grid

GROUP_SIZES = (16, 32, 64, 128, 256)  # of the MatMulNBits kernels


@dataclass(frozen=True)
class RoundedMatrix:
    """A matrix of K inputs and N outputs, rounded in groups along K.

    Attributes:
        bits: 4 or 8.
        group_size: one of GROUP_SIZES.
        packed: uint8, shape (N, groups, group_size * bits / 8), low nibble first; the last group is padded with zeros.
        scales: f32, shape (N, groups).
        zero_points: uint8, shape (N, groups * bits / 8), rounded up; or, of 4 bits only, f32 of shape (N, groups), with which
            the kernel computes in f32 on a dequantized copy; None where symmetric.
    """

    bits: int
    group_size: int
    packed: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.uint8] | NDArray[np.float32] | None

    @property
    def layout(self) -> tuple[int, int, str]:
        """What matrices must have in common to be served as one."""
        zero_points = "none" if self.zero_points is None else str(self.zero_points.dtype)
        return self.bits, self.group_size, zero_points


def round_matrix(
    weights_KN: NDArray[np.float32], bits: int, group_size: int, *, symmetric: bool
) -> RoundedMatrix:
    """Round to nearest.

    Raises:
        CompressionError: a weight is not finite.
    """
    padded = _padded(weights_KN, group_size)
    inputs, outputs = weights_KN.shape
    groups, in_byte = len(padded) // group_size, 8 // bits
    packed = np.zeros((outputs, groups, group_size // in_byte), np.uint8)
    scales = np.zeros((outputs, groups), np.float32)
    zero_points = np.zeros((outputs, -(-groups // in_byte)), np.uint8)
    kernel = quantize_matmul_4bits if bits == 4 else quantize_matmul_8bits
    kernel(packed, padded, scales, zero_points, group_size, outputs, inputs, symmetric)
    return RoundedMatrix(bits, group_size, packed, scales, None if symmetric else zero_points)


def hqq_matrix(weights_KN: NDArray[np.float32], group_size: int) -> RoundedMatrix:
    """Half-quadratic quantization (Badri and Shaji 2023) to 4 bits, by onnxruntime.quantization.

    The scale spans minimum to maximum; the zero point, a real number, is fitted to |error|^0.7.

    Raises:
        CompressionError: a weight is not finite.
    """
    import torch
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        HQQWeightOnlyQuantConfig,
        HQQWeightOnlyQuantizer,
    )

    padded = _padded(weights_KN, group_size)
    quantizer = HQQWeightOnlyQuantizer(HQQWeightOnlyQuantConfig(block_size=group_size, bits=4))
    codes, scales, zeros = quantizer.quantize_internal(
        torch.from_numpy(np.ascontiguousarray(padded.T)), bits=4, group_size=group_size
    )
    codes_NGg = codes.numpy().astype(np.uint8).reshape(*scales.shape, group_size)
    return RoundedMatrix(4, group_size, packed_nibbles(codes_NGg), scales.numpy(), zeros.numpy())


def k_quant_matrix(weights_KN: NDArray[np.float32], group_size: int) -> RoundedMatrix:
    """llama.cpp's k-quant search of scale and zero point to 4 bits, by onnxruntime.quantization.

    Each group tries 20 scales by least squares, errors weighted by |w| + rms(w). The search puts no zero between its
    levels where all weights of a group have one sign, which the unsigned zero point then cannot express: such groups, and those
    that the zero point's rounding leaves farther from the weights, are rounded to nearest (onnxruntime 1.31).

    Raises:
        CompressionError: a weight is not finite.
    """
    from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor_k_quant_cpu

    nearest = round_matrix(weights_KN, 4, group_size, symmetric=False)
    outputs, groups = nearest.scales.shape
    weights_NGg = np.ascontiguousarray(_padded(weights_KN, group_size).T).reshape(outputs, groups, group_size)
    with np.errstate(divide="ignore", invalid="ignore"):  # groups of equal weights, which are replaced
        codes, scales, zeros = quant_tensor_k_quant_cpu(weights_NGg, 4, group_size)
        codes_NGg = np.nan_to_num(codes).reshape(weights_NGg.shape).astype(np.uint8)
        scales_NG = np.nan_to_num(scales).reshape(outputs, groups).astype(np.float32)
    zeros_NG = zeros.reshape(outputs, groups)
    near_codes = unpacked_nibbles(nearest.packed)
    near_zeros = np.zeros_like(zeros_NG)
    if nearest.zero_points is not None:
        near_zeros = unpacked_nibbles(nearest.zero_points.astype(np.uint8))[:, :groups]
    importance = np.abs(weights_NGg) + np.sqrt((weights_NGg**2).mean(-1, keepdims=True))

    def error(
        codes: NDArray[np.uint8], scales: NDArray[np.float32], zeros: NDArray[np.uint8]
    ) -> NDArray[np.float32]:
        dense = (codes.astype(np.float32) - zeros.astype(np.float32)[..., None]) * scales[..., None]
        total: NDArray[np.float32] = (importance * (dense - weights_NGg) ** 2).sum(-1)
        return total

    better = error(codes_NGg, scales_NG, zeros_NG) < error(near_codes, nearest.scales, near_zeros)
    return RoundedMatrix(
        4,
        group_size,
        packed_nibbles(np.where(better[..., None], codes_NGg, near_codes)),
        np.where(better, scales_NG, nearest.scales),
        _packed_zeros(np.where(better, zeros_NG, near_zeros), 4),
    )


def matrix_of_grid(grid: Grid) -> RoundedMatrix:
    """The same numbers in blocks that the kernels take: a larger group is cut into blocks that share its scale.

    Raises:
        CompressionError: no block size fits the groups, or the integers do not fit the bits.
    """
    block = max((size for size in GROUP_SIZES if grid.group_size % size == 0), default=None)
    if block is None:
        raise CompressionError(
            f"a grid has groups of {grid.group_size}; ONNX Runtime stores blocks of {', '.join(map(str, GROUP_SIZES))}, "
            "one of which must divide them; use such a group_size"
        )
    if grid.codes.max() >= 2**grid.bits or not np.isfinite(grid.scales).all():
        raise CompressionError(
            f"a grid of {grid.bits} bits holds the integer {grid.codes.max()} or a scale that is not finite; build it again"
        )
    repeats = grid.group_size // block
    codes_NGg = grid.codes.reshape(len(grid.codes), -1, block)
    zeros = None if grid.zeros is None else np.repeat(grid.zeros, repeats, axis=1)
    return RoundedMatrix(
        grid.bits,
        block,
        packed_nibbles(codes_NGg) if grid.bits == 4 else codes_NGg,
        np.repeat(grid.scales.astype(np.float32), repeats, axis=1),
        None if zeros is None else _stored_zeros(zeros, grid.bits),
    )


def stacked(matrices: list[RoundedMatrix]) -> RoundedMatrix:
    """Matrices of one layout and one input as one, outputs after each other."""
    first = matrices[0]
    if len(matrices) == 1:
        return first
    zero_points = None
    if first.zero_points is not None:
        zero_points = np.concatenate([m.zero_points for m in matrices if m.zero_points is not None])
    return RoundedMatrix(
        first.bits,
        first.group_size,
        np.concatenate([m.packed for m in matrices]),
        np.concatenate([m.scales for m in matrices]),
        zero_points,
    )


def packed_nibbles(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two 4-bit integers a byte along the last axis, which is even; the first one low."""
    packed: NDArray[np.uint8] = codes[..., 0::2] | np.left_shift(codes[..., 1::2], np.uint8(4))
    return packed


def unpacked_nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The inverse of `packed_nibbles`."""
    return np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1)


def _stored_zeros(zeros_NG: NDArray[Any], bits: int) -> NDArray[np.uint8] | NDArray[np.float32]:
    return zeros_NG.astype(np.float32) if zeros_NG.dtype == np.float16 else _packed_zeros(zeros_NG, bits)


def _packed_zeros(zeros_NG: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return np.ascontiguousarray(zeros_NG)
    return packed_nibbles(np.pad(zeros_NG, ((0, 0), (0, zeros_NG.shape[1] % 2))))


def _padded(weights_KN: NDArray[np.float32], group_size: int) -> NDArray[np.float32]:
    """The weights as f32 with zeros up to whole groups of inputs."""
    if not np.isfinite(weights_KN).all():
        raise CompressionError("a weight matrix holds NaN or infinity; repair the checkpoint")
    padded = np.pad(weights_KN.astype(np.float32), ((0, -len(weights_KN) % group_size), (0, 0)))
    return np.ascontiguousarray(padded)  # the kernels read memory, not strides
