"""Losses of the image autoencoder and of the temporal decoder: absolute differences of pixels and their gradients."""

from typing import Tuple

from mindspore import Tensor, nn, ops

from gm.autoencoder import AutoencoderKL, AutoencodingEngine


class ReconstructionLoss(nn.Cell):
    """mean |x - y| + edge_weight * mean |∇x - ∇y| of each clip, the gradient being the differences of neighbours in
    space and, where there are several frames, in time: edges stay sharp, and still areas still.

    Args:
        edge_weight: 0 for pixels only.
    """

    def __init__(self, edge_weight: float) -> None:
        super().__init__()
        self.edge_weight = edge_weight

    def construct(self, decoded: Tensor, frames: Tensor) -> Tensor:
        """Both (b, t, 3, H, W) -> (b,)."""
        b, t = frames.shape[:2]
        error = decoded - frames
        loss = self.mean(error)
        if self.edge_weight:
            edges = self.mean(error[..., 1:] - error[..., :-1]) + self.mean(error[..., 1:, :] - error[..., :-1, :])
            if t > 1:
                edges = edges + self.mean(error[:, 1:] - error[:, :-1])
            loss = loss + self.edge_weight * edges
        return loss

    def mean(self, error: Tensor) -> Tensor:
        return ops.mean(ops.abs(error).reshape(error.shape[0], -1), 1)


class AutoencoderLoss(nn.Cell):
    """Reconstruction through a sample of the posterior, and the posterior's distance from the unit Gaussian.

    Source: Rombach et al. 2022, section 3.1, without the adversarial and the perceptual part.

    Args:
        autoencoder: that is trained.
        edge_weight: see :class:`ReconstructionLoss`.
        kl_weight: of the Kullback-Leibler divergence, averaged over the latent's elements.
    """

    def __init__(self, autoencoder: AutoencoderKL, edge_weight: float, kl_weight: float) -> None:
        super().__init__(auto_prefix=False)
        self.autoencoder, self.kl_weight = autoencoder, kl_weight
        self.reconstruction = ReconstructionLoss(edge_weight)

    def construct(self, frames: Tensor, noise: Tensor, loss_scale: Tensor) -> Tuple[Tensor, Tensor]:
        """frames: (b, t, 3, H, W); noise: (b·t, z, h, w), unit Gaussian -> (a number, (b,))."""
        b, t = frames.shape[:2]
        mean, log_variance = ops.chunk(self.autoencoder.moments(frames.reshape(-1, *frames.shape[2:])), 2, axis=1)
        log_variance = ops.clamp(log_variance, -30.0, 20.0)
        decoded = self.autoencoder.decode(mean + ops.exp(0.5 * log_variance) * noise, t)
        divergence = 0.5 * (ops.square(mean) + ops.exp(log_variance) - 1.0 - log_variance)
        losses = self.reconstruction(decoded.reshape(frames.shape), frames)
        losses = losses + self.kl_weight * ops.mean(divergence.reshape(b, -1), 1)
        return ops.mean(losses) * loss_scale, losses


class DecoderLoss(nn.Cell):
    """Reconstruction of clips from given latents.

    Args:
        autoencoder: whose decoder is trained.
        edge_weight: see :class:`ReconstructionLoss`.
    """

    def __init__(self, autoencoder: AutoencodingEngine, edge_weight: float) -> None:
        super().__init__(auto_prefix=False)
        self.autoencoder = autoencoder
        self.reconstruction = ReconstructionLoss(edge_weight)

    def construct(self, frames: Tensor, latents: Tensor, loss_scale: Tensor) -> Tuple[Tensor, Tensor]:
        """frames: (b, t, 3, H, W); latents: (b·t, z, h, w), not scaled -> (a number, (b,))."""
        b, t = frames.shape[:2]
        decoded = self.autoencoder.decode(latents, t)
        losses = self.reconstruction(decoded.reshape(frames.shape), frames)
        return ops.mean(losses) * loss_scale, losses
