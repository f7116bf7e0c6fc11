"""The matrices of Winograd's minimal filters over three taps, by Cook and Toom's way of multiplying polynomials."""

from fractions import Fraction
from typing import List, Sequence, Tuple

import numpy as np

from gm.backend.kernels.winograd import P, Q

POINTS = (Fraction(0), P, -P, Q, -Q)  # and infinity


def matrices() -> Tuple[np.ndarray, ...]:
    """Those of :data:`POINTS`, (4, 6), (6, 3) and (6, 6), double precision."""
    return tuple(np.array(matrix, np.float64) for matrix in cook_toom(POINTS))


def cook_toom(points: Sequence[Fraction]) -> Tuple[List[List[Fraction]], ...]:
    """The matrices of the minimal filter of three taps, interpolating at `points` and at infinity.

    Filtering is the transpose of multiplying polynomials, which is done at points (Toom 1963, Cook 1966).

    Args:
        points: m + 1 different numbers, for m results.

    Returns:
        Aᵀ (m, m + 2), G (m + 2, 3) and Bᵀ (m + 2, m + 2) with Aᵀ[(G g) ⊙ (Bᵀ d)] the correlation of d with g.
    """
    count = len(points) - 1
    others = [[q for q in points if q != p] for p in points]
    a = [[p**power for p in points] + [Fraction(power == count - 1)] for power in range(count)]
    g = [[p**power / _at(p, rest) for power in range(3)] for p, rest in zip(points, others)]
    b = [_with_roots(rest) + [Fraction(0)] for rest in others]
    infinity = [Fraction(0), Fraction(0), Fraction(1)]
    return a, g + [infinity], b + [_with_roots(points)]


def _at(x: Fraction, roots: Sequence[Fraction]) -> Fraction:
    """The monic polynomial with these roots, at x."""
    value = Fraction(1)
    for root in roots:
        value *= x - root
    return value


def _with_roots(roots: Sequence[Fraction]) -> List[Fraction]:
    """The coefficients of the monic polynomial with these roots, the lowest power first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted, scaled = [Fraction(0)] + coefficients, [-root * c for c in coefficients] + [Fraction(0)]
        coefficients = [x + y for x, y in zip(shifted, scaled)]
    return coefficients
