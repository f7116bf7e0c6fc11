"""Normalisation."""

import numpy as np

from gm.backend.kernels.threads import kernel

F = np.float32
BLOCK = 4096  # numbers that are summed in fp32, lane by lane; the blocks' sums are added in double precision
LANES = 16  # sums beside each other, for a processor that adds as many numbers at once


@kernel
def mean_and_rstd(x, eps):
    """The mean and 1/√(variance + eps) of a vector, in one pass: both are of its differences from its first number."""
    n, origin = x.size, x[0]
    total, squares = 0.0, 0.0
    sums, sums_of_squares = np.zeros(LANES, F), np.zeros(LANES, F)
    for start in range(0, n, BLOCK):
        block = x[start : start + BLOCK]
        whole = block.size // LANES * LANES
        sums[:] = F(0)
        sums_of_squares[:] = F(0)
        for i in range(0, whole, LANES):
            for lane in range(LANES):
                difference = block[i + lane] - origin
                sums[lane] += difference
                sums_of_squares[lane] += difference * difference
        for i in range(whole, block.size):
            difference = block[i] - origin
            sums[0] += difference
            sums_of_squares[0] += difference * difference
        for lane in range(LANES):
            total += sums[lane]
            squares += sums_of_squares[lane]
    mean = total / n
    variance = max(squares / n - mean * mean, 0.0)
    return F(mean + origin), F(1 / np.sqrt(variance + eps))


@kernel
def group_norm(first, last, x, weight, bias, eps, out):
    """x, out: (b·g, c/g, n); weight, bias: (g, c/g)."""
    groups, channels = weight.shape
    for row in range(first, last):
        group = row % groups
        mean, rstd = mean_and_rstd(x[row].reshape(-1), eps)
        for channel in range(channels):
            scale = rstd * weight[group, channel]
            shift = bias[group, channel] - mean * scale
            source, result = x[row, channel], out[row, channel]
            for i in range(source.size):
                result[i] = source[i] * scale + shift


@kernel
def layer_norm(first, last, x, weight, bias, eps, out):
    """x, out: (n, c); weight, bias: (c,)."""
    for row in range(first, last):
        source, result = x[row], out[row]
        mean, rstd = mean_and_rstd(source, eps)
        for i in range(source.size):
            result[i] = (source[i] - mean) * rstd * weight[i] + bias[i]
