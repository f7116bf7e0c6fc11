"""EDM preconditioning with v-prediction (Karras et al. 2022; SVD, appendix D.2)."""

from typing import TYPE_CHECKING, Any, NamedTuple, Union

import numpy as np

if TYPE_CHECKING:
    from gm.networks.conditioner import Conditioning

Array = np.ndarray


class Preconditioning(NamedTuple):
    """D(x; σ) = c_skip·x + c_out·F(c_in·x; c_noise). Numbers, or one value per clip."""

    c_skip: Array
    c_out: Array
    c_in: Array
    c_noise: Array


class VScalingWithEDMcNoise:
    """v-prediction for σ_data = 1, with EDM's noise embedding 0.25 ln σ (SVD, D.2)."""

    def __call__(self, sigma: Union[float, Array]) -> Preconditioning:
        """σ: positive, any shape."""
        sigma = np.asarray(sigma, np.float64)
        return Preconditioning(
            c_skip=1 / (sigma**2 + 1),
            c_out=-sigma / np.sqrt(sigma**2 + 1),
            c_in=1 / np.sqrt(sigma**2 + 1),
            c_noise=0.25 * np.log(sigma),
        )


class Denoiser:
    """Turns the network's raw output into an estimate of the clean latents.

    Args:
        scaling: σ -> :class:`Preconditioning`.
    """

    def __init__(self, scaling: Any) -> None:
        self.scaling = scaling

    def __call__(self, network, x: Array, sigma: float, cond: "Conditioning") -> Array:
        """The denoised latents of a batch of clips.

        Args:
            network: (x, c_noise, cond) -> F, host arrays.
            x: (b, t, 4, h, w), noisy at σ.
            cond: of the b clips.

        Returns:
            (b, t, 4, h, w), fp32.
        """
        c = self.scaling(sigma)
        prediction = network((c.c_in * x).astype(np.float32), np.full(len(x), c.c_noise, np.float32), cond)
        return (c.c_skip * x + c.c_out * prediction).astype(np.float32)
