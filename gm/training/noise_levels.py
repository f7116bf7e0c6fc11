"""Log-normal noise levels: σ of the diffusion and of the conditioning frame's noise (SVD, appendix D)."""

import math

import numpy as np

from gm.errors import UserError


class LogNormal:
    """ln x ~ N(log_mean, log_std²).

    Args:
        log_mean, log_std: P_mean and P_std for the diffusion's σ; -3.0 and 0.5 for the conditioning noise.
        flag: the options' common name, for the error line.

    Raises:
        UserError: a mean that is not finite, or a standard deviation that is negative or not finite.
    """

    def __init__(self, log_mean: float, log_std: float, flag: str) -> None:
        if not math.isfinite(log_mean):
            raise UserError(f"{flag}: the mean {log_mean} is not finite; SVD's values are in configs/svd_train.yaml")
        if not 0 <= log_std < math.inf:
            raise UserError(f"{flag}: the standard deviation {log_std} cannot be used; it is 0 or more")
        self.log_mean, self.log_std = log_mean, log_std

    def __call__(self, rng: np.random.Generator) -> float:
        """One level, above 0."""
        return float(np.exp(self.log_mean + self.log_std * rng.standard_normal()))
