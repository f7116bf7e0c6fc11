"""Noise levels of a sampling run: `discretizer(n)` gives n falling sigmas and a final 0."""

from dataclasses import dataclass
from typing import Annotated, Any, Mapping, Sequence

import numpy as np

from gm.config.values import Range

SVD_SIGMA_MAX = 700.0
Sigma = Annotated[float, Range(0, 1e6)]
PositiveSigma = Annotated[float, Range(1e-6, 1e6)]

# Sabour et al. 2024, "Align Your Steps", for Stable Video Diffusion and 10 steps.
ALIGN_YOUR_STEPS_SVD = (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002)


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
