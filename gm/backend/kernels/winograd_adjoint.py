"""The adjoints of :mod:`gm.backend.kernels.winograd`'s loops: what takes gradients back through each of them."""

import numpy as np

from gm.backend.kernels.threads import inlined, kernel
from gm.backend.kernels.winograd import (
    P1,
    P2,
    P3,
    PRODUCT,
    Q1,
    Q2,
    Q3,
    SIDE,
    SUM,
    TILE,
    F,
    rows_of_tiles,
    six_parts,
    six_rows,
)


@inlined
def from_points(v0, v1, v2, v3, v4, v5):
    """B v, for :func:`gm.backend.kernels.winograd.to_points`."""
    even_p, odd_p = v1 + v2, P1 * (v1 - v2)
    even_q, odd_q = v3 + v4, Q1 * (v3 - v4)
    d0 = PRODUCT * v0
    d1 = PRODUCT * v5 - Q2 * odd_p - P2 * odd_q
    d2 = -SUM * v0 - Q2 * even_p - P2 * even_q
    d3 = odd_p + odd_q - SUM * v5
    return d0, d1, d2, d3, v0 + even_p + even_q, v5


@inlined
def to_points(y0, y1, y2, y3):
    """A y, for :func:`gm.backend.kernels.winograd.from_points`."""
    even_p, odd_p = y0 + P2 * y2, P1 * y1 + P3 * y3
    even_q, odd_q = y0 + Q2 * y2, Q1 * y1 + Q3 * y3
    return y0, even_p + odd_p, even_p - odd_p, even_q + odd_q, even_q - odd_q, y3


@inlined
def from_points_of_rows(v, d):
    """:func:`from_points` of six rows of numbers, into six."""
    v0, v1, v2, v3, v4, v5 = v
    d0, d1, d2, d3, d4, d5 = d
    for i in range(v0.size):
        d0[i], d1[i], d2[i], d3[i], d4[i], d5[i] = from_points(v0[i], v1[i], v2[i], v3[i], v4[i], v5[i])


@inlined
def to_points_of_rows(y, m):
    """:func:`to_points` of four rows of numbers, into six."""
    y0, y1, y2, y3 = y
    m0, m1, m2, m3, m4, m5 = m
    for i in range(y0.size):
        m0[i], m1[i], m2[i], m3[i], m4[i], m5[i] = to_points(y0[i], y1[i], y2[i], y3[i])


@kernel
def from_tiles(first, last, tiles, out):
    """Tiles to the sums of what each pixel is in, channel by channel.

    Args:
        first, last: channels.
        tiles: (36, c, w/4·n·h/4), column by column of tiles.
        out: (n, c, h, w), changed.
    """
    frames, _, height, width = out.shape
    across = width // TILE
    rows = tiles.shape[2] // across
    which, lines = rows_of_tiles(0, rows, height)
    edges = np.empty((SIDE, width + 2, rows), F)
    pixels = np.empty((SIDE, width + 2, rows), F)
    part = np.empty((SIDE, rows), F)
    edges_flat, pixels_flat = edges.reshape(SIDE, -1), pixels.reshape(SIDE, -1)
    for channel in range(first, last):
        for side in range(SIDE):
            for column in range(across):
                places = six_parts(tiles, side * SIDE, 1, channel, column * rows, (column + 1) * rows)
                from_points_of_rows(places, six_rows(part, 0))
                for place in range(SIDE):
                    source, target = part[place], edges[side, TILE * column + place]
                    if place < 2 and column > 0:
                        for row in range(rows):
                            target[row] += source[row]
                    else:
                        for row in range(rows):
                            target[row] = source[row]
        from_points_of_rows(six_rows(edges_flat, 0), six_rows(pixels_flat, 0))
        for frame in range(frames):
            out[frame, channel] = F(0)
        for row in range(rows):
            plane = out[which[row], channel]
            for side in range(SIDE):
                y = lines[row] + side - 1
                if 0 <= y < height:
                    line, source = plane[y], pixels[side]
                    for i in range(width):
                        line[i] += source[i + 1, row]


@kernel
def from_pixels(first, last, pixels, tiles):
    """Pixels to the tiles that hold them, channel by channel.

    Args:
        first, last: channels.
        pixels: (n, o, h, w).
        tiles: (36, o, w/4·n·h/4), changed; column by column of tiles.
    """
    height, width = pixels.shape[2:]
    across = width // TILE
    rows = tiles.shape[2] // across
    which, lines = rows_of_tiles(0, rows, height)
    under = np.empty((TILE, TILE, rows), F)  # a column of tiles
    halfway = np.empty((TILE, SIDE, rows), F)
    for channel in range(first, last):
        for column in range(across):
            start, x = column * rows, column * TILE
            for row in range(rows):
                plane = pixels[which[row], channel]
                for line in range(TILE):
                    for i in range(TILE):
                        under[line, i, row] = plane[lines[row] + line, x + i]
            for line in range(TILE):
                column_of_line = under[line, 0], under[line, 1], under[line, 2], under[line, 3]
                to_points_of_rows(column_of_line, six_rows(halfway[line], 0))
            for side in range(SIDE):
                lines_of_side = halfway[0, side], halfway[1, side], halfway[2, side], halfway[3, side]
                to_points_of_rows(lines_of_side, six_parts(tiles, side, SIDE, channel, start, start + rows))


@kernel
def tiles_to_frames(first, last, tiles, out):
    """Tiles of frames to the sums of what each frame is in, channel by channel.

    Args:
        first, last: channels.
        tiles: (6, c, b·t/4·n).
        out: (b, c, t, n), changed.
    """
    clips, _, frames, pixels = out.shape
    along = frames // TILE
    before, after = np.empty(pixels, F), np.empty(pixels, F)
    for channel in range(first, last):
        for tile in range(clips * along):
            clip, t = out[tile // along, channel], tile % along * TILE
            v0, v1, v2, v3, v4, v5 = six_parts(tiles, 0, 1, channel, tile * pixels, (tile + 1) * pixels)
            y0, y1, y2, y3 = clip[t], clip[t + 1], clip[t + 2], clip[t + 3]
            last_before = clip[t - 1] if t > 0 else before
            for i in range(pixels):
                d0, d1, d2, d3, d4, d5 = from_points(v0[i], v1[i], v2[i], v3[i], v4[i], v5[i])
                if t > 0:
                    last_before[i] += d0
                    d1 += after[i]
                y0[i], y1[i], y2[i], y3[i] = d1, d2, d3, d4
                after[i] = d5


@kernel
def from_frames(first, last, frames, tiles):
    """Frames to the tiles that hold them, channel by channel.

    Args:
        first, last: channels.
        frames: (b, o, t, n).
        tiles: (6, o, b·t/4·n), changed.
    """
    pixels, along = frames.shape[3], frames.shape[2] // TILE
    for channel in range(first, last):
        for tile in range(frames.shape[0] * along):
            clip, t = frames[tile // along, channel], tile % along * TILE
            places = six_parts(tiles, 0, 1, channel, tile * pixels, (tile + 1) * pixels)
            to_points_of_rows((clip[t], clip[t + 1], clip[t + 2], clip[t + 3]), places)
