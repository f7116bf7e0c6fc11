"""Losses of the image autoencoder and of the temporal decoder: absolute differences of pixels, edges and colours."""

from typing import List, NamedTuple, Tuple

import numpy as np
from mindspore import Tensor, nn, ops

from gm.backend import operators
from gm.networks.autoencoder import DOWNSAMPLING, AutoencoderKL, AutoencodingEngine

BLOCK = DOWNSAMPLING  # pixels
RMS_FLOOR = 1e-8  # mean square, so that the root has a gradient where nothing is wrong
COLOUR_SCALE = 2.0  # of a latent that stands for a mean colour in -1..1: a standard deviation of about 1


class ReconstructionInputs(NamedTuple):
    """One batch for :class:`AutoencoderLoss` or :class:`DecoderLoss` (host arrays, fp32)."""

    frames: np.ndarray  # (b, t, 3, H, W), range -1..1
    latents: np.ndarray  # unit Gaussian noise for the posterior, or what is decoded: (b·t, z, h, w), not scaled

    def tensors(self) -> List[Tensor]:
        """What the loss takes but for the loss scale."""
        return [Tensor(array) for array in self]

    def loss_sums(self, losses: np.ndarray) -> np.ndarray:
        """Sum and number of the clips' losses (b,): (2, 1)."""
        return np.array([[losses.sum()], [len(losses)]])


class ReconstructionLoss(nn.Cell):
    """mean |x - y| + edge_weight * mean |∇x - ∇y| + colour_weight * C + rms_weight * √mean (x - y)² of each clip.

    The gradient is the differences of neighbours in space and, where there are several frames, in time: edges stay
    sharp, and still areas still. C is mean |m| + mean |m' - m|, where m is the error's mean over blocks of 8x8 pixels
    and m' that of the next colour channel: without it, a small network learns colours last.

    Args:
        edge_weight: 0 for none.
        colour_weight: 0 for none.
        rms_weight: of the root mean square error, which is what PSNR measures; 0 for none.
    """

    def __init__(self, edge_weight: float, colour_weight: float = 0.0, rms_weight: float = 0.0) -> None:
        super().__init__()
        self.edge_weight, self.colour_weight, self.rms_weight = edge_weight, colour_weight, rms_weight

    def construct(self, decoded: Tensor, frames: Tensor) -> Tensor:
        """Both (b, t, 3, H, W) -> (b,)."""
        error = decoded - frames
        loss = mean_size(error)
        if self.edge_weight:
            edges = mean_size(steps_along(error, 4)) + mean_size(steps_along(error, 3))
            if error.shape[1] > 1:
                edges = edges + mean_size(steps_along(error, 1))
            loss = loss + self.edge_weight * edges
        if self.colour_weight:
            blocks = block_means(error)
            first, others = operators.current.narrow(blocks, 2, 0, 1), operators.current.narrow(blocks, 2, 1, 2)
            next_channel = ops.cat((others, first), axis=2)
            loss = loss + self.colour_weight * (mean_size(blocks) + mean_size(next_channel - blocks))
        if self.rms_weight:
            loss = loss + self.rms_weight * ops.sqrt(mean_of_clip(ops.square(error)) + RMS_FLOOR)
        return loss


class AutoencoderLoss(nn.Cell):
    """Reconstruction through a sample of the posterior, and the posterior's distance from the unit Gaussian.

    Source: Rombach et al. 2022, section 3.1, without the adversarial and the perceptual part.

    Args:
        autoencoder: that is trained.
        reconstruction: of the frames.
        kl_weight: of the Kullback-Leibler divergence, averaged over the latent's elements.
        anchor_weight: of the distance between the latent's first three channels and twice the mean red, green and blue
            of their 8x8 pixels. A code that leaves a colour out, because it is rare, would never learn it: neither half
            of the autoencoder has a use for it unless the other one has.
    """

    def __init__(
        self,
        autoencoder: AutoencoderKL,
        reconstruction: ReconstructionLoss,
        kl_weight: float,
        anchor_weight: float = 0.0,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.autoencoder, self.reconstruction = autoencoder, reconstruction
        self.kl_weight, self.anchor_weight = kl_weight, anchor_weight

    def construct(self, frames: Tensor, noise: Tensor, loss_scale: Tensor) -> Tuple[Tensor, Tensor]:
        """frames: (b, t, 3, H, W); noise: (b·t, z, h, w), unit Gaussian -> (a number, (b,))."""
        b = frames.shape[0]
        moments = self.autoencoder.moments(frames.reshape(-1, *frames.shape[2:]))
        mean, log_variance = operators.current.halves(moments, 1)
        log_variance = ops.clamp(log_variance, -30.0, 20.0)
        decoded = self.autoencoder.decode(mean + ops.exp(0.5 * log_variance) * noise)
        divergence = 0.5 * (ops.square(mean) + ops.exp(log_variance) - 1.0 - log_variance)
        losses = self.reconstruction(decoded.reshape(frames.shape), frames)
        losses = losses + self.kl_weight * operators.current.mean(divergence.reshape(b, -1), 1)
        if self.anchor_weight:
            colours = block_means(frames).reshape(-1, 3, *mean.shape[2:])
            distance = ops.abs(operators.current.narrow(mean, 1, 0, 3) - COLOUR_SCALE * colours)
            losses = losses + self.anchor_weight * operators.current.mean(distance.reshape(b, -1), 1)
        return operators.current.mean(losses) * loss_scale, losses


class DecoderLoss(nn.Cell):
    """Reconstruction of clips from given latents.

    Args:
        autoencoder: whose decoder is trained.
        reconstruction: of the frames.
    """

    def __init__(self, autoencoder: AutoencodingEngine, reconstruction: ReconstructionLoss) -> None:
        super().__init__(auto_prefix=False)
        self.autoencoder, self.reconstruction = autoencoder, reconstruction

    def construct(self, frames: Tensor, latents: Tensor, loss_scale: Tensor) -> Tuple[Tensor, Tensor]:
        """frames: (b, t, 3, H, W); latents: (b·t, z, h, w), not scaled -> (a number, (b,))."""
        decoded = self.autoencoder.decode(latents.reshape(frames.shape[:2] + latents.shape[1:]))
        losses = self.reconstruction(decoded.reshape(frames.shape), frames)
        return operators.current.mean(losses) * loss_scale, losses


def mean_size(error: Tensor) -> Tensor:
    """The mean absolute value of each clip: (b, …) -> (b,)."""
    return mean_of_clip(ops.abs(error))


def mean_of_clip(x: Tensor) -> Tensor:
    """(b, …) -> (b,)."""
    return operators.current.mean(x.reshape(x.shape[0], -1), 1)


def steps_along(x: Tensor, axis: int) -> Tensor:
    """The differences of neighbours along an axis, which is one shorter then."""
    last = x.shape[axis] - 1
    return operators.current.narrow(x, axis, 1, last) - operators.current.narrow(x, axis, 0, last)


def block_means(x: Tensor) -> Tensor:
    """(b, t, c, H, W) -> (b, t, c, H/8, W/8)."""
    b, t, c, height, width = x.shape
    blocks = x.reshape(b * t * c, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    return blocks.mean(4).mean(2).reshape(b, t, c, height // BLOCK, width // BLOCK)
