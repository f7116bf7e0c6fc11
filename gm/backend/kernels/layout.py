"""Changes of layout that move the last axis."""

from gm.backend.kernels.threads import kernel

SQUARE = 32  # rows and columns that are turned at once: they fit the first cache


@kernel
def transpose(first, last, x, out):
    """x: (n, a, b) -> out: (n, b, a), in stripes of SQUARE rows of a: ⌈a/SQUARE⌉ of them for each n."""
    rows, columns = x.shape[1:]
    stripes = (rows + SQUARE - 1) // SQUARE
    for stripe in range(first, last):
        source, result = x[stripe // stripes], out[stripe // stripes]
        top = stripe % stripes * SQUARE
        bottom = min(top + SQUARE, rows)
        for left in range(0, columns, SQUARE):
            for column in range(left, min(left + SQUARE, columns)):
                for row in range(top, bottom):
                    result[column, row] = source[row, column]
