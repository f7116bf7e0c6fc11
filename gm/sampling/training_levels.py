"""Networks trained on the thousand noise levels of DDPM, as Stable Diffusion's: levels, schedules, preconditioning."""

from dataclasses import dataclass
from typing import Any, Callable, Literal, Mapping, Sequence

import numpy as np

from gm.sampling.denoiser import Preconditioning, VScalingWithEDMcNoise
from gm.sampling.schedules import AlignYourStepsDiscretization, EDMDiscretization

# Of Stable Diffusion (Rombach et al. 2022): β is linear in √β, σ² = (1 - ᾱ) / ᾱ; rising.
TRAINING_STEPS = 1000
_BETAS = np.linspace(0.00085**0.5, 0.0120**0.5, TRAINING_STEPS) ** 2
TRAINING_SIGMAS = np.sqrt(1 / np.cumprod(1 - _BETAS) - 1)
Timestep = Literal["nearest", "interpolated", "quantized"]  # what a network is told of a σ between two of them
# Sabour et al. 2024 for Stable Diffusion 1.5 and 10 steps, as indices of training levels; XL's are in its YAML file.
ALIGN_YOUR_STEPS_SD = (999, 850, 736, 645, 545, 455, 343, 233, 124, 24)


def training_index(sigma: float) -> float:
    """Where a σ is among the training levels, linear in ln σ between two of them: 0 to 999."""
    return float(np.interp(np.log(sigma), np.log(TRAINING_SIGMAS), np.arange(TRAINING_STEPS)))


def training_sigma(index: np.ndarray) -> np.ndarray:
    """The inverse of :func:`training_index`, for any shape."""
    return np.exp(np.interp(index, np.arange(TRAINING_STEPS), np.log(TRAINING_SIGMAS)))


# How n steps are spread over the training levels, n -> falling indices (Lin et al. 2024, table 2).
SPACINGS: Mapping[str, Callable[[int], np.ndarray]] = {
    "linspace": lambda n: np.linspace(TRAINING_STEPS - 1, 0, n),
    "leading": lambda n: np.arange(n)[::-1] * (TRAINING_STEPS // n) + 1,
    "trailing": lambda n: np.round(np.arange(TRAINING_STEPS, 0, -TRAINING_STEPS / n)) - 1,
    "sgm": lambda n: np.floor(np.linspace(TRAINING_STEPS - 1, 0, n, endpoint=False)),
}


@dataclass(eq=False)
class LegacyDDPMDiscretization:
    """Training levels, or what is interpolated between them.

    Args:
        spacing: `linspace` from the highest to the lowest (ComfyUI's "normal"), `leading` (diffusers' published
            samplers), `trailing` (for few steps), or `sgm` (its own, ComfyUI's "sgm_uniform").
    """

    spacing: Literal[tuple(SPACINGS)] = "sgm"

    def __call__(self, num_steps: int) -> np.ndarray:
        """(num_steps + 1,), float64."""
        return np.append(training_sigma(SPACINGS[self.spacing](num_steps)), 0.0)


IMAGE_SCHEDULES = ("karras", *SPACINGS, "ays")


def image_schedule(name: str, align_your_steps: Sequence[int] = ALIGN_YOUR_STEPS_SD) -> Any:
    """One of `IMAGE_SCHEDULES`, for networks trained on DDPM's levels.

    Args:
        align_your_steps: falling indices of training levels, tuned for as many steps.
    """
    if name == "karras":
        return EDMDiscretization(float(TRAINING_SIGMAS[0]), float(TRAINING_SIGMAS[-1]))
    if name == "ays":
        return AlignYourStepsDiscretization(tuple(float(sigma) for sigma in TRAINING_SIGMAS[[*align_your_steps, 0]]))
    return LegacyDDPMDiscretization(name)


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
