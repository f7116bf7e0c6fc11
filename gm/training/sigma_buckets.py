"""The loss by noise level: a mean over all σ hides that the levels behave differently."""

from typing import Dict

import numpy as np

EDGES = (0.3, 1.0, 3.0, 10.0, 30.0)  # about the quantiles 12, 27, 52, 80 and 93 % of SVD's distribution of σ
BOUNDS = (0.0, *EDGES, np.inf)
NAMES = tuple(f"loss_sigma/{low:g}-{high:g}" for low, high in zip(BOUNDS, BOUNDS[1:]))


def bucket_sums(sigma: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Sum and number of the losses in each bucket: (2, buckets), fp64, to be added up over batches and devices.

    Args:
        sigma, losses: (b,).
    """
    index = np.searchsorted(EDGES, sigma, side="right")
    count = len(NAMES)
    sums = np.zeros((2, count))
    np.add.at(sums[0], index, losses)
    np.add.at(sums[1], index, 1)
    return sums


def mean_losses(sums: np.ndarray) -> Dict[str, float]:
    """The overall mean as `loss`, and `loss_sigma/LOW-HIGH` of every bucket that has a clip.

    Args:
        sums: (2, buckets), or (2, 1) of a loss that knows no σ.
    """
    means = {"loss": float(sums[0].sum() / sums[1].sum())}
    if sums.shape[1] == 1:
        return means
    means.update({name: float(s / n) for name, s, n in zip(NAMES, *sums) if n})
    return means
