"""Sums: with what is broadcast, a number or a vector to each row, and with one number that scales a summand."""

from gm.backend.kernels.threads import kernel

ROWS = 64  # that are summed in fp32


@kernel
def add_numbers(first, last, x, numbers, out):
    """x, out: (n, m); numbers: (n,)."""
    for row in range(first, last):
        number, values, result = numbers[row], x[row], out[row]
        for i in range(values.size):
            result[i] = values[i] + number


@kernel
def add_numbers_in_place(first, last, x, numbers):
    """x: (n, m), changed; numbers: (k,), in turn for the rows."""
    for row in range(first, last):
        number, values = numbers[row % numbers.size], x[row]
        for i in range(values.size):
            values[i] += number


@kernel
def add_vectors(first, last, x, vectors, which, out):
    """x, out: (n, c); vectors: (k, c); which: (n,), of 0..k-1."""
    for row in range(first, last):
        vector, values, result = vectors[which[row]], x[row], out[row]
        for i in range(values.size):
            result[i] = values[i] + vector[i]


@kernel
def add_vector_in_place(first, last, x, vector):
    """x: (n, c), changed; vector: (c,)."""
    for row in range(first, last):
        values = x[row]
        for i in range(values.size):
            values[i] += vector[i]


@kernel
def add_to_scaled(first, last, x, y, scale):
    """x + scale·y: x: (n,); y: (n,), changed to it."""
    term, values = x[first:last], y[first:last]
    for i in range(values.size):
        values[i] = term[i] + scale * values[i]


@kernel
def mix_in(first, last, x, y, share):
    """y + share·(x - y): x: (n,); y: (n,), changed to it."""
    other, values = x[first:last], y[first:last]
    for i in range(values.size):
        values[i] += share * (other[i] - values[i])


@kernel
def over_rows(first, last, x, out):
    """The columns' sums, in blocks of rows: x: (n, c); out: (⌈n/ROWS⌉, c), changed from `first` to `last`."""
    for block in range(first, last):
        rows, totals = x[block * ROWS : (block + 1) * ROWS], out[block]
        fours = len(rows) // 4 * 4
        totals[:] = 0
        for row in range(0, fours, 4):
            a, b, c, d = rows[row], rows[row + 1], rows[row + 2], rows[row + 3]
            for i in range(totals.size):
                totals[i] += (a[i] + b[i]) + (c[i] + d[i])
        for row in range(fours, len(rows)):
            values = rows[row]
            for i in range(totals.size):
                totals[i] += values[i]
