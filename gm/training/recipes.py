"""How a batch becomes what a network is trained with: one recipe for each stage of training."""

from typing import List, Mapping, NamedTuple, Protocol, Sequence

import numpy as np
from mindspore import Tensor

from gm.networks.autoencoder import DOWNSAMPLING
from gm.training.frozen_encoders import FRAMES, FrozenEncoders
from gm.training.objective import Objective, TrainInputs
from gm.training.random_streams import NOISE, SampleRandom


class Inputs(Protocol):
    """One batch for a loss."""

    def tensors(self) -> List[Tensor]:
        """What the loss takes, in its order, but for the loss scale."""

    def loss_sums(self, losses: np.ndarray) -> np.ndarray:
        """Sums and numbers of the clips' losses (b,), see :mod:`gm.training.sigma_buckets`."""


class Recipe(Protocol):
    """From what the data set gives to what the loss takes."""

    def __call__(self, batch: Mapping[str, np.ndarray], randoms: Sequence[SampleRandom]) -> Inputs:
        """One batch.

        Args:
            batch: see :class:`gm.training.frozen_encoders.FrozenEncoders`.
            randoms: of the b clips.
        """


class DiffusionRecipe(NamedTuple):
    """For the UNet: encoded, noised, conditioned."""

    encoders: FrozenEncoders
    objective: Objective

    def __call__(self, batch: Mapping[str, np.ndarray], randoms: Sequence[SampleRandom]) -> TrainInputs:
        """See :class:`Recipe`."""
        encoded = self.encoders(batch, randoms)
        return self.objective(encoded.latents, encoded.cond, randoms)


class ReconstructionInputs(NamedTuple):
    """One batch for the autoencoder, or for the temporal decoder (host arrays, fp32)."""

    frames: np.ndarray  # (b, t, 3, H, W), range -1..1
    latents: np.ndarray  # unit Gaussian noise for the posterior, or what is decoded: (b·t, z, h, w), not scaled

    def tensors(self) -> List[Tensor]:
        """See :class:`Inputs`."""
        return [Tensor(array) for array in self]

    def loss_sums(self, losses: np.ndarray) -> np.ndarray:
        """See :class:`Inputs`."""
        return np.array([[losses.sum()], [len(losses)]])


class AutoencoderRecipe(NamedTuple):
    """For the image autoencoder: frames, and the noise that its posterior is sampled with."""

    z_channels: int

    def __call__(self, batch: Mapping[str, np.ndarray], randoms: Sequence[SampleRandom]) -> ReconstructionInputs:
        """See :class:`Recipe`."""
        frames = batch[FRAMES]
        return ReconstructionInputs(frames, latent_noise(frames, self.z_channels, randoms))


class DecoderRecipe(NamedTuple):
    """For the temporal decoder: encoded frames, a little noised, as a UNet's results are not perfect either."""

    encoders: FrozenEncoders
    noise: float  # standard deviation, of latents that are multiplied by the scale factor

    def __call__(self, batch: Mapping[str, np.ndarray], randoms: Sequence[SampleRandom]) -> ReconstructionInputs:
        """See :class:`Recipe`."""
        frames = batch[FRAMES]
        latents = self.encoders.latents(frames)
        latents = latents.reshape(-1, *latents.shape[2:])
        noise = latent_noise(frames, latents.shape[1], randoms)
        scaled = latents + np.float32(self.noise) * noise
        return ReconstructionInputs(frames, scaled / np.float32(self.encoders.scale_factor))


def latent_noise(frames: np.ndarray, z_channels: int, randoms: Sequence[SampleRandom]) -> np.ndarray:
    """Unit Gaussian noise of the latents' shape: (b, t, 3, H, W) -> (b·t, z, h, w)."""
    t, _, height, width = frames.shape[1:]
    shape = (t, z_channels, height // DOWNSAMPLING, width // DOWNSAMPLING)
    return np.concatenate([random.stream(NOISE).standard_normal(shape, np.float32) for random in randoms])
