"""Preconditioning (Karras et al. 2022): SVD's, and that of networks trained on the thousand levels of DDPM."""

from typing import Any, NamedTuple, Union

import numpy as np

from gm.networks.conditioner import Conditioning
from gm.sampling.schedules import TRAINING_SIGMAS, Timestep, training_index

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


class DiscreteScaling:
    """Of networks that are told the index of a training level, 0 to 999, whatever the σ between them.

    Args:
        timestep: the index is that of the `nearest` level (ComfyUI), or `interpolated` in ln σ between two (diffusers);
            `quantized` takes the nearest level for σ itself, too (sgm).
    """

    def __init__(self, timestep: Timestep = "nearest") -> None:
        self.timestep = timestep

    def __call__(self, sigma: float) -> Preconditioning:
        """σ: positive."""
        if self.timestep == "quantized":
            index = float(np.argmin(np.abs(TRAINING_SIGMAS - sigma)))
            return self.at(TRAINING_SIGMAS[int(index)], index)
        index = training_index(sigma)
        return self.at(sigma, round(index) if self.timestep == "nearest" else index)

    def at(self, sigma: float, c_noise: float) -> Preconditioning:
        """For a σ and its index."""
        raise NotImplementedError


class EpsScaling(DiscreteScaling):
    """The network predicts the noise (Ho et al. 2020): x0 = x - σ·F(x / √(σ² + 1))."""

    def at(self, sigma: float, c_noise: float) -> Preconditioning:
        return Preconditioning(c_skip=1.0, c_out=-sigma, c_in=1 / np.sqrt(sigma**2 + 1), c_noise=c_noise)


class VScaling(DiscreteScaling):
    """The network predicts v (Salimans & Ho 2022): as :class:`VScalingWithEDMcNoise`, told the index."""

    def at(self, sigma: float, c_noise: float) -> Preconditioning:
        return VScalingWithEDMcNoise()(sigma)._replace(c_noise=c_noise)


class Denoiser:
    """Turns the network's raw output into an estimate of the clean latents.

    Args:
        scaling: σ -> :class:`Preconditioning`.
    """

    def __init__(self, scaling: Any) -> None:
        self.scaling = scaling

    def __call__(self, network, x: Array, sigma: float, cond: Conditioning) -> Array:
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
