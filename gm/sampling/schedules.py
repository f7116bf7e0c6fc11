"""Noise levels of a sampling run: `discretizer(n)` gives n falling sigmas and a final 0."""

from dataclasses import dataclass
from typing import Annotated, Any, Callable, Literal, Mapping, Sequence

import numpy as np

from gm.config.values import Range

SVD_SIGMA_MAX = 700.0
Sigma = Annotated[float, Range(0, 1e6)]
PositiveSigma = Annotated[float, Range(1e-6, 1e6)]

# Sabour et al. 2024, "Align Your Steps", for Stable Video Diffusion and 10 steps.
ALIGN_YOUR_STEPS_SVD = (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002)


# The levels that Stable Diffusion is trained on (Rombach et al. 2022): β linear in √β, σ² = (1 - ᾱ) / ᾱ; rising.
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


@dataclass(eq=False)
class EDMDiscretization:
    """σ_i = (σ_max^(1/ρ) + i/(n-1) (σ_min^(1/ρ) - σ_max^(1/ρ)))^ρ (Karras et al. 2022, equation 5).

    Args:
        sigma_min, sigma_max: the lowest and the highest level; SVD: 0.002, 700.
        rho: the schedule's exponent.
    """

    sigma_min: PositiveSigma = 0.002
    sigma_max: PositiveSigma = 80.0
    rho: Annotated[float, Range(0.01, 100)] = 7.0

    def __call__(self, num_steps: int) -> np.ndarray:
        """(num_steps + 1,), float64."""
        ramp = np.linspace(0, 1, num_steps)
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return np.append((high + ramp * (low - high)) ** self.rho, 0.0)


@dataclass(eq=False)
class AlignYourStepsDiscretization:
    """Sigmas tuned for few steps: the published ten, interpolated log-linearly for other counts.

    Args:
        sigmas: falling; the last marks the end of the interpolation and is replaced by 0.
    """

    sigmas: Sequence[PositiveSigma] = ALIGN_YOUR_STEPS_SVD

    def __call__(self, num_steps: int) -> np.ndarray:
        """(num_steps + 1,), float64."""
        positions = np.linspace(0, 1, len(self.sigmas))
        wanted = np.linspace(0, 1, num_steps + 1)
        sigmas = np.exp(np.interp(wanted, positions, np.log(self.sigmas)))
        return np.append(sigmas[:-1], 0.0)


SCHEDULES: Mapping[str, Any] = {"karras": EDMDiscretization, "ays": AlignYourStepsDiscretization}

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
