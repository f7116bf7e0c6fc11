"""SiLU, GELU and GEGLU."""

import numpy as np

from gm.backend.kernels.threads import kernel

F = np.float32
LOWEST, HIGHEST = F(-87.0), F(88.0)  # between which exp(x) is a normal fp32 number
LOG2_E = F(1.4426950408889634)
LN2_HIGH, LN2_LOW = F(0.693359375), F(-2.12194440e-4)  # their sum is ln 2 to more than fp32's digits
EXP = tuple(map(F, (1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2)))  # of exp's power series from x⁷ down to x²
EXPONENT_BIAS, EXPONENT_SHIFT = np.int32(127), np.int32(23)  # of IEEE 754's binary32

# ln(Φ(x) / Φ(-x)) / x in powers of x², the highest first: a least-squares fit on 0..7, weighted until the largest error
# of x·Φ(x), 7e-8, was the same at all extrema.
LOGIT_OF_CDF = (
    3.6278542862577645e-09, -2.675663877548878e-07, 7.948141374739075e-06, -1.1054674257276881e-04,
    -6.605340493721379e-05, 7.266829823713872e-02, 1.5957685368174517,
)  # fmt: skip
Q6, Q5, Q4, Q3, Q2, Q1, Q0 = map(F, LOGIT_OF_CDF)
C7, C6, C5, C4, C3, C2 = EXP


@kernel
def exp(x):
    """eˣ as 2ⁿ·eʳ with |r| at most ln(2)/2, which is a power series and so one pass over many numbers at once."""
    x = min(max(x, LOWEST), HIGHEST)
    n = np.floor(x * LOG2_E + F(0.5))
    r = x - n * LN2_HIGH - n * LN2_LOW
    series = C7
    series = series * r + C6
    series = series * r + C5
    series = series * r + C4
    series = series * r + C3
    series = series * r + C2
    power = np.int32((np.int32(n) + EXPONENT_BIAS) << EXPONENT_SHIFT).view(np.float32)  # 2ⁿ
    return (series * r * r + r + F(1)) * power


@kernel
def gated(x, logit):
    """x·sigmoid(logit)."""
    return x / (F(1) + exp(-logit))


@kernel
def gelu_of(x):
    """x·Φ(x), Φ being the standard normal distribution function, as x·sigmoid(x·q(x²))."""
    square = x * x
    q = Q6
    q = q * square + Q5
    q = q * square + Q4
    q = q * square + Q3
    q = q * square + Q2
    q = q * square + Q1
    q = q * square + Q0
    return gated(x, x * q)


@kernel
def silu(first, last, x, out):
    """x, out: (n,)."""
    source, result = x[first:last], out[first:last]
    for i in range(source.size):
        result[i] = gated(source[i], source[i])


@kernel
def gelu(first, last, x, out):
    """x, out: (n,)."""
    source, result = x[first:last], out[first:last]
    for i in range(source.size):
        result[i] = gelu_of(source[i])


@kernel
def geglu(first, last, x, bias, out):
    """h·gelu(g): x: (n, 2c), h before g, still without their bias; bias: (2c,); out: (n, c)."""
    c = out.shape[1]
    hidden_bias, gate_bias = bias[:c], bias[c:]
    for row in range(first, last):
        hidden, gate, result = x[row, :c], x[row, c:], out[row]
        for i in range(c):
            result[i] = (hidden[i] + hidden_bias[i]) * gelu_of(gate[i] + gate_bias[i])
