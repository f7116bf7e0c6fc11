"""The way to the tiles of :mod:`gm.backend.winograd` and back; the points are 0, ±P, ±Q and ∞."""

from fractions import Fraction

import numpy as np

from gm.backend.kernels.threads import inlined, kernel

TILE = 4  # pixels of a tile's result, in either direction; it depends on two more
SIDE = TILE + 2
PLACES = SIDE**2
P, Q = Fraction(3, 4), Fraction(3, 2)
F = np.float32
P1, P2, P3 = F(P), F(P**2), F(P**3)
Q1, Q2, Q3 = F(Q), F(Q**2), F(Q**3)
SUM, PRODUCT = F(P**2 + Q**2), F(P**2 * Q**2)
OF_ORIGIN, OF_P, OF_Q = F(1 / (P * Q) ** 2), F(1 / (2 * P**2 * (P**2 - Q**2))), F(1 / (2 * Q**2 * (Q**2 - P**2)))


@inlined
def to_points(d0, d1, d2, d3, d4, d5):
    """Bᵀ d: the polynomials with roots at all points but one are even and odd parts that ±P and ±Q share."""
    even_p, odd_p = d4 - Q2 * d2, P1 * (d3 - Q2 * d1)
    even_q, odd_q = d4 - P2 * d2, Q1 * (d3 - P2 * d1)
    origin = PRODUCT * d0 - SUM * d2 + d4
    infinity = PRODUCT * d1 - SUM * d3 + d5
    return origin, even_p + odd_p, even_p - odd_p, even_q + odd_q, even_q - odd_q, infinity


@inlined
def from_points(m0, m1, m2, m3, m4, m5):
    """Aᵀ m: the powers of each point."""
    even_p, odd_p = m1 + m2, m1 - m2
    even_q, odd_q = m3 + m4, m3 - m4
    y0 = m0 + even_p + even_q
    y1 = P1 * odd_p + Q1 * odd_q
    y2 = P2 * even_p + Q2 * even_q
    y3 = P3 * odd_p + Q3 * odd_q + m5
    return y0, y1, y2, y3


@inlined
def weights_to_points(g0, g1, g2):
    """G g: the polynomial at each point, over the product of the differences from the others."""
    even_p, odd_p = OF_P * (g0 + P2 * g2), OF_P * (P1 * g1)
    even_q, odd_q = OF_Q * (g0 + Q2 * g2), OF_Q * (Q1 * g1)
    return OF_ORIGIN * g0, even_p + odd_p, even_p - odd_p, even_q + odd_q, even_q - odd_q, g2


@inlined
def to_points_of_rows(d, v):
    """:func:`to_points` of six rows of numbers, into six."""
    d0, d1, d2, d3, d4, d5 = d
    v0, v1, v2, v3, v4, v5 = v
    for i in range(d0.size):
        v0[i], v1[i], v2[i], v3[i], v4[i], v5[i] = to_points(d0[i], d1[i], d2[i], d3[i], d4[i], d5[i])


@inlined
def from_points_of_rows(m, y):
    """:func:`from_points` of six rows of numbers, into four."""
    m0, m1, m2, m3, m4, m5 = m
    y0, y1, y2, y3 = y
    for i in range(m0.size):
        y0[i], y1[i], y2[i], y3[i] = from_points(m0[i], m1[i], m2[i], m3[i], m4[i], m5[i])


@kernel
def weights_to_points_of_rows(g, u):
    """:func:`weights_to_points` of three long rows of numbers, into six; as a piece of its callers it takes longer."""
    g0, g1, g2 = g
    u0, u1, u2, u3, u4, u5 = u
    for i in range(g0.size):
        u0[i], u1[i], u2[i], u3[i], u4[i], u5[i] = weights_to_points(g0[i], g1[i], g2[i])


@inlined
def six_rows(x, k):
    """Six rows of (m, n) from the k-th on."""
    return x[k], x[k + 1], x[k + 2], x[k + 3], x[k + 4], x[k + 5]


@inlined
def six(x, k, row):
    """The same row of six arrays of (m, r, n), from the k-th on."""
    return x[k, row], x[k + 1, row], x[k + 2, row], x[k + 3, row], x[k + 4, row], x[k + 5, row]


@inlined
def six_parts(x, k, step, row, start, stop):
    """A part of the same row of six arrays of (m, r, n): the k-th and every `step`-th after it."""
    return (
        x[k, row, start:stop],
        x[k + step, row, start:stop],
        x[k + 2 * step, row, start:stop],
        x[k + 3 * step, row, start:stop],
        x[k + 4 * step, row, start:stop],
        x[k + 5 * step, row, start:stop],
    )


@kernel
def to_weights(first, last, weight, out):
    """3x3 kernels to tiles: weight: (o, i, 9); out: (36, o, i)."""
    channels = weight.shape[1]
    taps, halfway = np.empty((9, channels), F), np.empty((SIDE, 3, channels), F)
    for o in range(first, last):
        kernel = weight[o]
        for i in range(channels):
            for tap in range(9):
                taps[tap, i] = kernel[i, tap]
        for column in range(3):
            kernel_rows = taps[column], taps[column + 3], taps[column + 6]
            weights_to_points_of_rows(kernel_rows, six(halfway, 0, column))
        for side in range(SIDE):
            kernel_rows = halfway[side, 0], halfway[side, 1], halfway[side, 2]
            weights_to_points_of_rows(kernel_rows, six(out, side * SIDE, o))


@kernel
def to_temporal_weights(first, last, weight, out):
    """Kernels of three frames to tiles: weight: (o, i, 3); out: (6, o, i)."""
    for o in range(first, last):
        g = weight[o]
        u0, u1, u2, u3, u4, u5 = six(out, 0, o)
        for i in range(weight.shape[1]):
            u0[i], u1[i], u2[i], u3[i], u4[i], u5[i] = weights_to_points(g[i, 0], g[i, 1], g[i, 2])


@kernel
def frames_to_tiles(first, last, x, start, stop, tiles):
    """Frames to tiles of four, channel by channel.

    Args:
        first, last: channels.
        x: (b, c, t, n).
        start, stop: of the n pixels.
        tiles: (6, c, b·⌈t/4⌉·(stop - start)), changed.
    """
    clips, frames, pixels = x.shape[0], x.shape[2], stop - start
    along = (frames + TILE - 1) // TILE
    nothing = np.zeros(pixels, F)
    for channel in range(first, last):
        for tile in range(clips * along):
            clip, t = x[tile // along, channel, :, start:stop], tile % along * TILE - 1
            d0 = clip[t] if t >= 0 else nothing
            d1 = clip[t + 1]
            d2 = clip[t + 2] if t + 2 < frames else nothing
            d3 = clip[t + 3] if t + 3 < frames else nothing
            d4 = clip[t + 4] if t + 4 < frames else nothing
            d5 = clip[t + 5] if t + 5 < frames else nothing
            places = six_parts(tiles, 0, 1, channel, tile * pixels, (tile + 1) * pixels)
            to_points_of_rows((d0, d1, d2, d3, d4, d5), places)


@kernel
def to_frames(first, last, tiles, start, stop, out):
    """Tiles of four frames back, channel by channel.

    Args:
        first, last: channels.
        tiles: (6, o, b·⌈t/4⌉·(stop - start)).
        start, stop: of the n pixels.
        out: (b, o, t, n), changed.
    """
    clips, frames, pixels = out.shape[0], out.shape[2], stop - start
    along = (frames + TILE - 1) // TILE
    beyond = np.empty(pixels, F)
    for channel in range(first, last):
        for tile in range(clips * along):
            clip, t = out[tile // along, channel, :, start:stop], tile % along * TILE
            places = six_parts(tiles, 0, 1, channel, tile * pixels, (tile + 1) * pixels)
            y0 = clip[t]
            y1 = clip[t + 1] if t + 1 < frames else beyond
            y2 = clip[t + 2] if t + 2 < frames else beyond
            y3 = clip[t + 3] if t + 3 < frames else beyond
            from_points_of_rows(places, (y0, y1, y2, y3))


@kernel
def to_tiles(first, last, x, scale, top, tiles):
    """Pixels to tiles, channel by channel: all tiles of a column beside each other, for loops over many of them.

    Args:
        first, last: channels.
        x: (n, c, h, w).
        scale: 2 if each pixel stands for 2x2.
        top: the first row of tiles, counted through all frames.
        tiles: (36, c, across·rows), changed: as many rows of tiles from there on, column by column.
    """
    height, width = x.shape[2] * scale, x.shape[3] * scale
    across = (width + TILE - 1) // TILE
    rows = tiles.shape[2] // across
    frames, lines = rows_of_tiles(top, rows, height)
    columns = TILE * across + 2
    pixels = np.zeros((SIDE, columns, rows), F)  # under each row of tiles, between zeros
    edges = np.empty((SIDE, columns, rows), F)  # the same, transformed downwards
    pixels_flat, edges_flat = pixels.reshape(SIDE, -1), edges.reshape(SIDE, -1)
    for channel in range(first, last):
        for row in range(rows):
            for side in range(SIDE):
                y, under = lines[row] + side - 1, pixels[side]
                if 0 <= y < height:
                    line = x[frames[row], channel, y // scale]
                    if scale == 1:
                        for i in range(x.shape[3]):
                            under[i + 1, row] = line[i]
                    else:
                        for i in range(x.shape[3]):
                            under[2 * i + 1, row] = under[2 * i + 2, row] = line[i]
                else:
                    for i in range(width):
                        under[i + 1, row] = F(0)
        to_points_of_rows(six_rows(pixels_flat, 0), six_rows(edges_flat, 0))
        for side in range(SIDE):
            for column in range(across):
                places = six_parts(tiles, side * SIDE, 1, channel, column * rows, (column + 1) * rows)
                to_points_of_rows(six_rows(edges[side], TILE * column), places)


@kernel
def to_pixels(first, last, tiles, top, out, offset):
    """Tiles to pixels, channel by channel.

    Args:
        first, last: channels of `tiles`.
        tiles: (36, o, across·rows), as :func:`to_tiles` makes them.
        top: the first row of tiles, counted through all frames.
        out: (n, …, h, w), changed where these tiles lie.
        offset: the channel of `out` that is the first of `tiles`.
    """
    height, width = out.shape[2:]
    across = (width + TILE - 1) // TILE
    rows = tiles.shape[2] // across
    frames, lines = rows_of_tiles(top, rows, height)
    halfway = np.empty((TILE, SIDE, rows), F)  # a column of tiles, transformed downwards
    pixels = np.empty((TILE, rows), F)
    for channel in range(first, last):
        for column in range(across):
            start, x = column * rows, column * TILE
            for side in range(SIDE):
                places = six_parts(tiles, side, SIDE, channel, start, start + rows)
                from_points_of_rows(places, (halfway[0, side], halfway[1, side], halfway[2, side], halfway[3, side]))
            for line in range(TILE):
                from_points_of_rows(six_rows(halfway[line], 0), (pixels[0], pixels[1], pixels[2], pixels[3]))
                for row in range(rows):
                    frame, y = frames[row], lines[row] + line
                    if y >= height:
                        continue
                    for i in range(min(TILE, width - x)):
                        out[frame, offset + channel, y, x + i] = pixels[i, row]


@kernel
def rows_of_tiles(top, count, height):
    """For rows of tiles from `top` on, counted through all frames: the frame of each, and its first line in there."""
    down = (height + TILE - 1) // TILE
    frames, lines = np.empty(count, np.int64), np.empty(count, np.int64)
    for row in range(count):
        frames[row], lines[row] = (top + row) // down, (top + row) % down * TILE
    return frames, lines
