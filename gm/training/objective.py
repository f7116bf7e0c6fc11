"""The diffusion objective (Karras et al. 2022, equation 8; SVD, appendix D): what the network sees and should predict.

The loss λ(σ)·|D(z0 + σ n; σ) - z0|² with D = c_skip·x + c_out·F is λ c_out²·|F - (z0 - c_skip·x)/c_out|². The target
of F is computed here, in double precision, where the difference does not lose its digits at small σ.
"""

from typing import Dict, List, NamedTuple, Sequence, Tuple

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from gm.backend import operators
from gm.errors import UserError
from gm.networks.conditioner import Conditioning
from gm.sampling.denoiser import VScalingWithEDMcNoise

# Streams with numbers below 3 are the data's (data.dataloader, data.video_dataset, modules.training.latent_cache).
SIGMA, NOISE, COND_AUG, COND_NOISE, DROPOUT, LORA_DROPOUT = range(3, 9)
EDGES = (0.3, 1.0, 3.0, 10.0, 30.0)  # about the quantiles 12, 27, 52, 80 and 93 % of SVD's distribution of σ
BOUNDS = (0.0, *EDGES, np.inf)
NAMES = tuple(f"loss_sigma/{low:g}-{high:g}" for low, high in zip(BOUNDS, BOUNDS[1:]))


class SampleRandom(NamedTuple):
    """The random numbers of one training sample: a function of (seed, stream, epoch, place) and of nothing else.

    Neither the number of devices, nor how many batches make an update, nor where a run was interrupted changes them.
    """

    seed: int  # of the run
    epoch: int  # from 0
    place: int  # of the sample in the epoch's order

    def stream(self, stream: int) -> np.random.Generator:
        """A generator at the start of one of the sample's streams, which are independent of each other."""
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(stream, self.epoch, self.place)))


def unit_gaussian(randoms: Sequence[SampleRandom], stream: int, shape: Tuple[int, ...]) -> np.ndarray:
    """Noise of the given shape for each of b samples: (b, *shape), fp32."""
    return np.stack([random.stream(stream).standard_normal(shape, np.float32) for random in randoms])


class LogNormal(NamedTuple):
    """A distribution of noise levels: ln x ~ N(log_mean, log_std²) (SVD, appendix D)."""

    log_mean: float  # P_mean for the diffusion's σ; -3.0 for the conditioning noise
    log_std: float  # P_std, 0 or more; 0.5

    def __call__(self, rng: np.random.Generator) -> float:
        """One level, above 0."""
        return float(np.exp(self.log_mean + self.log_std * rng.standard_normal()))


class ConditioningDropout(NamedTuple):
    """How often a clip is trained without its image, so that classifier-free guidance has both halves.

    Attributes:
        both: probability that CLIP token and latent are zeroed: what sampling's unconditional half sees.
        token: that only the CLIP token is.
        latent: that only the latent is. The vector always stays, as in sampling.
    """

    both: float = 0.1
    token: float = 0.05
    latent: float = 0.05

    def check(self) -> "ConditioningDropout":
        """Returns itself. Raises a UserError for a sum above 1."""
        if sum(self) > 1:
            raise UserError(f"--train.dropout: both + token + latent is {sum(self):g}; together they are at most 1")
        return self

    def __call__(self, cond: Conditioning, chances: Sequence[float]) -> Conditioning:
        """Zeroes what is dropped.

        Args:
            cond: of b clips.
            chances: (b,), uniform in 0..1.
        """
        u = np.asarray(chances)
        both, no_token = u < self.both, u < self.both + self.token
        return cond.without(token=no_token, latent=both | (~no_token & (u < sum(self))))


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
        """What :class:`DiffusionLoss` takes: all but σ itself."""
        return [Tensor(array) for array in self[:-1]]

    def loss_sums(self, losses: np.ndarray) -> np.ndarray:
        """Sums and numbers of the clips' losses (b,) by σ; see :func:`bucket_sums`."""
        return bucket_sums(self.sigma, losses)


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
        chances = [random.stream(DROPOUT).random() for random in randoms]
        noise = unit_gaussian(randoms, NOISE, latents.shape[1:])
        return self.inputs(latents, self.dropout(cond, chances), sigma, noise)

    def inputs(self, latents: np.ndarray, cond: Conditioning, sigma: np.ndarray, noise: np.ndarray) -> TrainInputs:
        """The same for given σ (b,) and unit Gaussian noise of the latents' shape."""
        c = self.scaling(sigma)
        c_skip, c_out, c_in, level = (values.reshape(-1, 1, 1, 1, 1) for values in (c.c_skip, c.c_out, c.c_in, sigma))
        x = latents + level * noise  # fp64
        target = (latents - c_skip * x) / c_out
        return TrainInputs(
            x=cond.beside((c_in * x).astype(np.float32)),
            c_noise=c.c_noise.astype(np.float32),
            crossattn=cond.crossattn.astype(np.float32),
            vector=cond.vector.astype(np.float32),
            target=target.astype(np.float32).reshape(-1, *target.shape[2:]),
            weight=(edm_weight(sigma) * c.c_out**2).astype(np.float32),
            sigma=sigma,
        )


class DiffusionLoss(nn.Cell):
    """The mean loss of a batch, multiplied by the loss scale, and the loss of each clip; both in fp32.

    Args:
        network: (x, c_noise, crossattn, vector) -> F.
    """

    def __init__(self, network: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, x, c_noise, crossattn, vector, target, weight, loss_scale) -> Tuple[Tensor, Tensor]:
        """For the shapes see :class:`TrainInputs`; loss_scale: a number -> (a number, (b,))."""
        b = c_noise.shape[0]
        prediction = self.network(x, c_noise, crossattn, vector).astype(ms.float32)
        difference = (prediction - target).reshape(b, -1)  # (b t) c h w -> b (t c h w)
        clip_losses = operators.current.mean(ops.square(difference), 1) * weight
        return operators.current.mean(clip_losses) * loss_scale, clip_losses


def edm_weight(sigma: np.ndarray) -> np.ndarray:
    """λ(σ) = (1 + σ²) / σ², for σ_data = 1 (SVD, D.2)."""
    return (1 + sigma**2) / sigma**2


def bucket_sums(sigma: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Sum and number of the losses (b,) by their σ (b,): (2, buckets), fp64, to be added over batches and devices."""
    index, buckets = np.searchsorted(EDGES, sigma, side="right"), len(NAMES)
    return np.stack([np.bincount(index, losses, buckets), np.bincount(index, minlength=buckets)])


def mean_losses(sums: np.ndarray) -> Dict[str, float]:
    """The overall mean as `loss`, and `loss_sigma/LOW-HIGH` of every bucket that has a clip.

    Args:
        sums: (2, buckets), or (2, 1) of a loss that knows no σ.
    """
    means = {"loss": float(sums[0].sum() / sums[1].sum())}
    if sums.shape[1] > 1:
        means.update({name: float(s / n) for name, s, n in zip(NAMES, *sums) if n})
    return means
