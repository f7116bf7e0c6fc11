"""The way to tiles and back of :mod:`gm.device.winograd`, with its constants: points 0, ±P, ±Q and ∞."""

from fractions import Fraction

import numpy as np

from gm.device.loops.threads import loop

TILE = 4  # pixels of a tile's result, in either direction; it depends on two more
SIDE = TILE + 2
P, Q = Fraction(3, 4), Fraction(3, 2)
F = np.float32
P1, P2, P3 = F(P), F(P**2), F(P**3)
Q1, Q2, Q3 = F(Q), F(Q**2), F(Q**3)
SUM, PRODUCT = F(P**2 + Q**2), F(P**2 * Q**2)
OF_ORIGIN, OF_P, OF_Q = F(1 / (P * Q) ** 2), F(1 / (2 * P**2 * (P**2 - Q**2))), F(1 / (2 * Q**2 * (Q**2 - P**2)))


@loop
def to_points(d0, d1, d2, d3, d4, d5):
    """Bᵀ d: the polynomials with roots at all points but one are even and odd parts that ±P and ±Q share."""
    even_p, odd_p = d4 - Q2 * d2, P1 * (d3 - Q2 * d1)
    even_q, odd_q = d4 - P2 * d2, Q1 * (d3 - P2 * d1)
    origin = PRODUCT * d0 - SUM * d2 + d4
    infinity = PRODUCT * d1 - SUM * d3 + d5
    return origin, even_p + odd_p, even_p - odd_p, even_q + odd_q, even_q - odd_q, infinity


@loop
def from_points(m0, m1, m2, m3, m4, m5):
    """Aᵀ m: the powers of each point."""
    even_p, odd_p = m1 + m2, m1 - m2
    even_q, odd_q = m3 + m4, m3 - m4
    y0 = m0 + even_p + even_q
    y1 = P1 * odd_p + Q1 * odd_q
    y2 = P2 * even_p + Q2 * even_q
    y3 = P3 * odd_p + Q3 * odd_q + m5
    return y0, y1, y2, y3


@loop
def weights_to_points(g0, g1, g2):
    """G g: the polynomial at each point, over the product of the differences from the others."""
    even_p, odd_p = OF_P * (g0 + P2 * g2), OF_P * (P1 * g1)
    even_q, odd_q = OF_Q * (g0 + Q2 * g2), OF_Q * (Q1 * g1)
    return OF_ORIGIN * g0, even_p + odd_p, even_p - odd_p, even_q + odd_q, even_q - odd_q, g2


@loop
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
            g0, g1, g2 = taps[column], taps[column + 3], taps[column + 6]
            h = halfway[:, column]
            h0, h1, h2, h3, h4, h5 = h[0], h[1], h[2], h[3], h[4], h[5]
            for i in range(channels):
                h0[i], h1[i], h2[i], h3[i], h4[i], h5[i] = weights_to_points(g0[i], g1[i], g2[i])
        for side in range(SIDE):
            g0, g1, g2 = halfway[side, 0], halfway[side, 1], halfway[side, 2]
            u = out[side * SIDE :, o]
            u0, u1, u2, u3, u4, u5 = u[0], u[1], u[2], u[3], u[4], u[5]
            for i in range(channels):
                u0[i], u1[i], u2[i], u3[i], u4[i], u5[i] = weights_to_points(g0[i], g1[i], g2[i])


@loop
def to_temporal_weights(first, last, weight, out):
    """Kernels of three frames to tiles: weight: (o, i, 3); out: (6, o, i)."""
    for o in range(first, last):
        g = weight[o]
        u0, u1, u2, u3, u4, u5 = out[0, o], out[1, o], out[2, o], out[3, o], out[4, o], out[5, o]
        for i in range(weight.shape[1]):
            u0[i], u1[i], u2[i], u3[i], u4[i], u5[i] = weights_to_points(g[i, 0], g[i, 1], g[i, 2])


@loop
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
            v = tiles[:, channel, tile * pixels : (tile + 1) * pixels]
            v0, v1, v2, v3, v4, v5 = v[0], v[1], v[2], v[3], v[4], v[5]
            for i in range(pixels):
                v0[i], v1[i], v2[i], v3[i], v4[i], v5[i] = to_points(d0[i], d1[i], d2[i], d3[i], d4[i], d5[i])


@loop
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
            m = tiles[:, channel, tile * pixels : (tile + 1) * pixels]
            m0, m1, m2, m3, m4, m5 = m[0], m[1], m[2], m[3], m[4], m[5]
            y0 = clip[t]
            y1 = clip[t + 1] if t + 1 < frames else beyond
            y2 = clip[t + 2] if t + 2 < frames else beyond
            y3 = clip[t + 3] if t + 3 < frames else beyond
            for i in range(pixels):
                y0[i], y1[i], y2[i], y3[i] = from_points(m0[i], m1[i], m2[i], m3[i], m4[i], m5[i])


@loop
def to_tiles(first, last, x, scale, top, tiles):
    """Pixels to tiles, channel by channel.

    Args:
        first, last: channels.
        x: (n, c, h, w).
        scale: 2 if each pixel stands for 2x2.
        top: the first row of tiles, counted through all frames.
        tiles: (36, c, rows·across), changed: as many rows of tiles from there on.
    """
    height, width = x.shape[2] * scale, x.shape[3] * scale
    down, across = (height + TILE - 1) // TILE, (width + TILE - 1) // TILE
    nothing = np.zeros(x.shape[3], F)
    edges = np.zeros((SIDE, TILE * across + 2), F)  # a row of tiles, transformed downwards, between zeros
    for channel in range(first, last):
        for row in range(tiles.shape[2] // across):
            frame, y = (top + row) // down, (top + row) % down * TILE - 1
            plane = x[frame, channel]
            d0 = plane[y // scale] if y >= 0 else nothing
            d1 = plane[(y + 1) // scale]
            d2 = plane[(y + 2) // scale] if y + 2 < height else nothing
            d3 = plane[(y + 3) // scale] if y + 3 < height else nothing
            d4 = plane[(y + 4) // scale] if y + 4 < height else nothing
            d5 = plane[(y + 5) // scale] if y + 5 < height else nothing
            e0, e1, e2, e3, e4, e5 = edges[0], edges[1], edges[2], edges[3], edges[4], edges[5]
            if scale == 1:
                for i in range(x.shape[3]):
                    v0, v1, v2, v3, v4, v5 = to_points(d0[i], d1[i], d2[i], d3[i], d4[i], d5[i])
                    e0[i + 1], e1[i + 1], e2[i + 1], e3[i + 1], e4[i + 1], e5[i + 1] = v0, v1, v2, v3, v4, v5
            else:
                for i in range(x.shape[3]):
                    v0, v1, v2, v3, v4, v5 = to_points(d0[i], d1[i], d2[i], d3[i], d4[i], d5[i])
                    j = 2 * i + 1
                    e0[j], e1[j], e2[j], e3[j], e4[j], e5[j] = v0, v1, v2, v3, v4, v5
                    e0[j + 1], e1[j + 1], e2[j + 1], e3[j + 1], e4[j + 1], e5[j + 1] = v0, v1, v2, v3, v4, v5
            for side in range(SIDE):
                d, places = edges[side], tiles[side * SIDE :, channel, row * across : (row + 1) * across]
                t0, t1, t2, t3, t4, t5 = places[0], places[1], places[2], places[3], places[4], places[5]
                for i in range(across):
                    j = TILE * i
                    t0[i], t1[i], t2[i], t3[i], t4[i], t5[i] = to_points(
                        d[j], d[j + 1], d[j + 2], d[j + 3], d[j + 4], d[j + 5]
                    )


@loop
def to_pixels(first, last, tiles, top, out):
    """Tiles to pixels, channel by channel.

    Args:
        first, last: channels of `tiles`.
        tiles: (36, o, rows·across).
        top: the first row of tiles, counted through all frames.
        out: (n, o, h, w), changed where these tiles lie.
    """
    height, width = out.shape[2:]
    down, across = (height + TILE - 1) // TILE, (width + TILE - 1) // TILE
    halfway = np.empty((TILE, SIDE, across), F)  # a row of tiles, transformed downwards
    line = np.empty(TILE * across, F)
    for channel in range(first, last):
        for row in range(tiles.shape[2] // across):
            start, end = row * across, (row + 1) * across
            for side in range(SIDE):
                places = tiles[side::SIDE, channel, start:end]
                m0, m1, m2, m3, m4, m5 = places[0], places[1], places[2], places[3], places[4], places[5]
                h0, h1, h2, h3 = halfway[0, side], halfway[1, side], halfway[2, side], halfway[3, side]
                for i in range(across):
                    h0[i], h1[i], h2[i], h3[i] = from_points(m0[i], m1[i], m2[i], m3[i], m4[i], m5[i])
            frame, y = (top + row) // down, (top + row) % down * TILE
            for line_of_tile in range(min(TILE, height - y)):
                m = halfway[line_of_tile]
                m0, m1, m2, m3, m4, m5 = m[0], m[1], m[2], m[3], m[4], m[5]
                for i in range(across):
                    j = TILE * i
                    line[j], line[j + 1], line[j + 2], line[j + 3] = from_points(
                        m0[i], m1[i], m2[i], m3[i], m4[i], m5[i]
                    )
                result = out[frame, channel, y + line_of_tile]
                for i in range(width):
                    result[i] = line[i]
