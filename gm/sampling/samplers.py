"""Samplers: from noise at σ_max to clean latents, along a list of sigmas.

They work on host arrays: a clip's latents are a few megabytes, the network is everything else. Noise comes from a
NumPy generator, so that one seed gives one video on every device and in every mode.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Callable, ClassVar, Iterable, Mapping, Optional, Type

import numpy as np

from gm.config.values import Range
from gm.sampling.guidance import Guider

MAX_STEPS = 10_000
LEAST_NOISE = 0.05  # σ, of data of σ 1, below which an image is as good as clean
Steps = Annotated[int, Range(1, MAX_STEPS)]
Factor = Annotated[float, Range(0, 1e6)]
Array = np.ndarray
Denoise = Callable[[Array, float], Array]  # (x, σ) -> x0
Progress = Callable[[Iterable[int]], Iterable[int]]


@dataclass(eq=False)
class Sampler:
    """A loop over noise levels; subclasses define one `step`.

    Args:
        discretization: n -> n + 1 sigmas, the last one 0.
        guider: what the engine guides the denoiser with.
        num_steps: n.

    Attributes:
        timestep: see :class:`gm.sampling.training_levels.DiscreteScaling`; as diffusers does it with this sampler.
    """

    discretization: Any
    guider: Guider
    num_steps: Steps = 25
    timestep: ClassVar[str] = "interpolated"

    def __call__(
        self, denoise: Denoise, noise: Array, rng: np.random.Generator, progress: Optional[Progress] = None
    ) -> Array:
        """Samples latents.

        Args:
            denoise: (x, σ) -> the guided estimate of the clean latents.
            noise: unit Gaussian, of the latents' shape.
            rng: for samplers that add noise on the way.
            progress: wraps the iteration over the steps (tqdm).

        Returns:
            Latents of the noise's shape, fp32.
        """
        sigmas = self.sigmas()
        x = noise.astype(np.float32) * np.float32(np.sqrt(1 + sigmas[0] ** 2))  # the model's data has σ_data = 1
        self.reset()
        steps = range(len(sigmas) - 1)
        for index in progress(steps) if progress else steps:
            x = self.step(denoise, x, sigmas[index], sigmas[index + 1], rng).astype(np.float32)
        return x

    def sigmas(self) -> Array:
        """(num_steps + 1,): the noise levels, falling, the last one 0."""
        return self.discretization(self.num_steps)

    def reset(self) -> None:
        """Forgets the last run (samplers with memory)."""

    def step(self, denoise: Denoise, x: Array, sigma: float, sigma_next: float, rng: np.random.Generator) -> Array:
        """x at σ -> x at σ_next."""
        raise NotImplementedError


@dataclass(eq=False)
class EDMSampler(Sampler):
    """The stochastic part of Karras et al. 2022, algorithm 2: churn raises σ before a step.

    Args:
        s_churn: how much noise is added in all; 0 is deterministic.
        s_tmin, s_tmax: the range of σ in which it is added.
        s_noise: standard deviation of what is added.
    """

    s_churn: Factor = 0.0
    s_tmin: Factor = 0.0
    s_tmax: Annotated[float, Range(0, float("inf"))] = float("inf")
    s_noise: Factor = 1.0

    def churn(self, x: Array, sigma: float, rng: np.random.Generator):
        """x at σ -> x and σ after adding noise."""
        if not (self.s_churn > 0 and self.s_tmin <= sigma <= self.s_tmax):
            return x, sigma
        gamma = min(self.s_churn / self.num_steps, 2**0.5 - 1)
        sigma_hat = sigma * (1 + gamma)
        noise = rng.standard_normal(x.shape, np.float32) * self.s_noise
        return x + noise * (sigma_hat**2 - sigma**2) ** 0.5, sigma_hat


class EulerEDMSampler(EDMSampler):
    """First order: x + (σ_next - σ)·(x - D(x; σ))/σ. SVD's own."""

    def step(self, denoise: Denoise, x: Array, sigma: float, sigma_next: float, rng: np.random.Generator) -> Array:
        x, sigma = self.churn(x, sigma, rng)
        slope = (x - denoise(x, sigma)) / sigma
        return x + slope * (sigma_next - sigma)


class HeunEDMSampler(EDMSampler):
    """Second order: Euler, then the mean of both slopes (Karras et al. 2022, algorithm 1): two evaluations a step."""

    def step(self, denoise: Denoise, x: Array, sigma: float, sigma_next: float, rng: np.random.Generator) -> Array:
        x, sigma = self.churn(x, sigma, rng)
        slope = (x - denoise(x, sigma)) / sigma
        euler = x + slope * (sigma_next - sigma)
        if sigma_next == 0:
            return euler
        slope_next = (euler - denoise(euler, sigma_next)) / sigma_next
        return x + (slope + slope_next) / 2 * (sigma_next - sigma)


@dataclass(eq=False)
class EulerAncestralSampler(Sampler):
    """Euler to below σ_next, then fresh noise up to it (Katherine Crowson's k-diffusion).

    Args:
        eta: share of fresh noise; 0 is Euler.
        s_noise: standard deviation of what is added.
    """

    eta: Factor = 1.0
    s_noise: Factor = 1.0

    def step(self, denoise: Denoise, x: Array, sigma: float, sigma_next: float, rng: np.random.Generator) -> Array:
        sigma_up = self.eta * (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2) ** 0.5
        sigma_up = min(sigma_next, sigma_up)
        sigma_down = (sigma_next**2 - sigma_up**2) ** 0.5
        x = x + (x - denoise(x, sigma)) / sigma * (sigma_down - sigma)
        if sigma_next == 0:
            return x
        return x + rng.standard_normal(x.shape, np.float32) * (self.s_noise * sigma_up)


class ConsistencySampler(Sampler):
    """Clean latents at every step, noised again to σ_next (Song et al. 2023, algorithm 1): for UNets distilled to few
    steps, such as AnimateLCM-SVD's (Wang et al. 2024), with guidance close to 1.
    """

    def sigmas(self) -> Array:
        """Without the lowest level but 0 if next to nothing is left to remove there."""
        sigmas = self.discretization(self.num_steps)
        return sigmas if sigmas[-2] > LEAST_NOISE else np.delete(self.discretization(self.num_steps + 1), -2)

    def step(self, denoise: Denoise, x: Array, sigma: float, sigma_next: float, rng: np.random.Generator) -> Array:
        return denoise(x, sigma) + rng.standard_normal(x.shape, np.float32) * np.float32(sigma_next)


class DPMPP2MSampler(Sampler):
    """DPM-Solver++(2M) (Lu et al. 2022): second order from one evaluation a step and the one before."""

    timestep = "nearest"

    def reset(self) -> None:
        self.last_denoised: Optional[Array] = None
        self.last_sigma = 0.0

    def step(self, denoise: Denoise, x: Array, sigma: float, sigma_next: float, rng: np.random.Generator) -> Array:
        denoised = denoise(x, sigma)
        estimate = denoised
        if self.last_denoised is not None and sigma_next > 0:
            ratio = np.log(self.last_sigma / sigma) / np.log(sigma / sigma_next)  # h_{i-1} / h_i, h in log-SNR
            estimate = denoised + (denoised - self.last_denoised) / (2 * ratio)
        self.last_denoised, self.last_sigma = denoised, sigma
        shrink = sigma_next / sigma
        return shrink * x + (1 - shrink) * estimate


SAMPLERS: Mapping[str, Type[Sampler]] = {
    "euler": EulerEDMSampler,
    "heun": HeunEDMSampler,
    "euler_ancestral": EulerAncestralSampler,
    "dpmpp2m": DPMPP2MSampler,
    "consistency": ConsistencySampler,
}
