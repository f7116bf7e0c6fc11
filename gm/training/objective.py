"""The training objective (Karras et al. 2022, equation 8; SVD, appendix D): what the network sees and should say.

The loss λ(σ)·|D(z0 + σ n; σ) - z0|² with D = c_skip·x + c_out·F is λ c_out²·|F - (z0 - c_skip·x)/c_out|². The target
of F is computed here, in double precision, where the difference does not lose its digits at small σ.
"""

from typing import List, NamedTuple, Sequence

import numpy as np
from mindspore import Tensor

from gm.networks.conditioner import Conditioning
from gm.sampling.denoiser import VScalingWithEDMcNoise
from gm.training.conditioning_dropout import ConditioningDropout
from gm.training.noise_levels import LogNormal
from gm.training.random_streams import DROPOUT, NOISE, SIGMA, SampleRandom
from gm.training.sigma_buckets import bucket_sums


class TrainInputs(NamedTuple):
    """One batch for the network and its loss (host arrays, fp32)."""

    x: np.ndarray  # (b·t, 8, h, w): c_in·(z0 + σ n) beside the latent of the conditioning frame
    c_noise: np.ndarray  # (b,)
    crossattn: np.ndarray  # (b, n, c)
    vector: np.ndarray  # (b, v)
    target: np.ndarray  # (b·t, 4, h, w), of the network's raw output F
    weight: np.ndarray  # (b,), λ(σ)·c_out(σ)²
    sigma: np.ndarray  # (b,)

    def tensors(self) -> List[Tensor]:
        """What :class:`gm.training.loss.DiffusionLoss` takes: all but σ itself."""
        return [Tensor(array) for array in self[:-1]]

    def loss_sums(self, losses: np.ndarray) -> np.ndarray:
        """Sums and numbers of the clips' losses (b,) by σ, see :mod:`gm.training.sigma_buckets`."""
        return bucket_sums(self.sigma, losses)


def edm_weight(sigma: np.ndarray) -> np.ndarray:
    """λ(σ) = (1 + σ²) / σ², for σ_data = 1 (SVD, D.2)."""
    return (1 + sigma**2) / sigma**2


class Objective:
    """Draws σ and noise, one σ per clip, and makes the network's inputs and target of them.

    Args:
        scaling: the sampler's preconditioning.
        sigma: the distribution of σ.
        dropout: of the conditioning.
    """

    def __init__(self, scaling: VScalingWithEDMcNoise, sigma: LogNormal, dropout: ConditioningDropout) -> None:
        self.scaling, self.sigma, self.dropout = scaling, sigma, dropout

    def __call__(self, latents: np.ndarray, cond: Conditioning, randoms: Sequence[SampleRandom]) -> TrainInputs:
        """One batch.

        Args:
            latents: z0, (b, t, 4, h, w), multiplied by the scale factor.
            cond: of the b clips.
            randoms: of the b clips.
        """
        sigma = np.array([self.sigma(random.stream(SIGMA)) for random in randoms])
        noise = np.stack([random.stream(NOISE).standard_normal(latents.shape[1:], np.float32) for random in randoms])
        chances = [random.stream(DROPOUT).random() for random in randoms]
        return self.inputs(latents, self.dropout(cond, chances), sigma, noise)

    def inputs(self, latents: np.ndarray, cond: Conditioning, sigma: np.ndarray, noise: np.ndarray) -> TrainInputs:
        """The same for given σ (b,) and unit Gaussian noise of the latents' shape."""
        b, t = latents.shape[:2]
        c = self.scaling(sigma)
        c_skip, c_out, c_in, level = (values.reshape(b, 1, 1, 1, 1) for values in (c.c_skip, c.c_out, c.c_in, sigma))
        x = latents + level * noise  # fp64
        target = (latents - c_skip * x) / c_out
        concat = np.broadcast_to(cond.concat[:, None], (b, t, *cond.concat.shape[1:]))
        frames = np.concatenate([(c_in * x).astype(np.float32), concat], axis=2)  # b t c h w
        return TrainInputs(
            x=frames.reshape(b * t, *frames.shape[2:]),
            c_noise=c.c_noise.astype(np.float32),
            crossattn=cond.crossattn.astype(np.float32),
            vector=cond.vector.astype(np.float32),
            target=target.astype(np.float32).reshape(b * t, *target.shape[2:]),
            weight=(edm_weight(sigma) * c.c_out**2).astype(np.float32),
            sigma=sigma,
        )
