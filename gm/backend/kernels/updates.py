"""What changes weights in training, and the sum that limits it."""

import numpy as np

from gm.backend.kernels.threads import kernel

F = np.float32
BLOCK = 4096  # numbers whose squares are summed in fp32, lane by lane; the blocks' sums are added in double precision
LANES = 16


@kernel
def adamw(first, last, parameter, mean, square, gradient, numbers):
    """One update, see :mod:`gm.training.optim`: `numbers` are the gradient's scale, lr, β1, β2, ε and decay, fp32.

    parameter, mean, square: (n,), changed from `first` to `last`; gradient: (n,).
    """
    scale, lr, beta1, beta2, eps, decay = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5]
    p, m, v, g = parameter[first:last], mean[first:last], square[first:last], gradient[first:last]
    rest1, rest2 = F(1) - beta1, F(1) - beta2
    for i in range(p.size):
        scaled = g[i] * scale
        m[i] = beta1 * m[i] + rest1 * scaled
        v[i] = beta2 * v[i] + rest2 * scaled * scaled
        p[i] -= lr * (m[i] / (np.sqrt(v[i]) + eps) + decay * p[i])


@kernel
def move(first, last, average, parameter, rate):
    """average + rate·(parameter - average): average: (n,), changed from `first` to `last`; parameter: (n,)."""
    a, p = average[first:last], parameter[first:last]
    for i in range(a.size):
        a[i] += rate * (p[i] - a[i])


@kernel
def square_sums(first, last, x, out):
    """The sum of squares of each block of x: (n,); out: (⌈n/BLOCK⌉,), changed from `first` to `last`."""
    sums = np.empty(LANES, F)
    for block in range(first, last):
        values = x[block * BLOCK : (block + 1) * BLOCK]
        whole = values.size // LANES * LANES
        sums[:] = F(0)
        for i in range(0, whole, LANES):
            for lane in range(LANES):
                sums[lane] += values[i + lane] * values[i + lane]
        for i in range(whole, values.size):
            sums[0] += values[i] * values[i]
        total = 0.0
        for lane in range(LANES):
            total += sums[lane]
        out[block] = total
