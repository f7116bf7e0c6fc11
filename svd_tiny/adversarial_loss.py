"""The reconstruction loss of a sharp autoencoder: pixels, features, and a discriminator that is trained along."""

from typing import Optional

from mindspore import Tensor, nn, ops

from gm.training.autoencoder_loss import ReconstructionLoss
from svd_tiny.discriminator import PatchDiscriminator
from svd_tiny.perceptual import PerceptualDistance


class AdversarialLoss(nn.Cell):
    """pixels + perceptual_weight * P + adversarial_weight * G + D, of each clip.

    P is the perceptual distance, G = -mean D(decoded) the autoencoder's share of the game (Rombach et al. 2022,
    equation 25) and D the discriminator's, the hinge loss. The gradient of G reaches the autoencoder only, that of D
    the discriminator only, so that one update serves both.

    Args:
        pixels: of the differences of pixels.
        perceptual: the distance between features; None for none.
        discriminator: None for none.
        perceptual_weight, adversarial_weight: 0 or more; the discriminator is trained even where its weight is 0, so
            that it is ready when it gets one.
    """

    def __init__(
        self,
        pixels: ReconstructionLoss,
        perceptual: Optional[PerceptualDistance],
        discriminator: Optional[PatchDiscriminator],
        perceptual_weight: float,
        adversarial_weight: float,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.pixels, self.perceptual, self.discriminator = pixels, perceptual, discriminator
        self.perceptual_weight, self.adversarial_weight = perceptual_weight, adversarial_weight

    def construct(self, decoded: Tensor, frames: Tensor) -> Tensor:
        """Both (b, t, 3, H, W), range -1..1 -> (b,)."""
        losses = self.pixels(decoded, frames)
        b = frames.shape[0]
        decoded, frames = decoded.reshape(-1, *decoded.shape[2:]), frames.reshape(-1, *frames.shape[2:])  # (b t) 3 H W
        if self.perceptual is not None:
            distance = self.perceptual(decoded, frames)
            losses = losses + self.perceptual_weight * distance.reshape(b, -1).mean(1)
        if self.discriminator is not None:
            fooled = self.discriminator(decoded, True).reshape(b, -1).mean(1)
            taken = ops.relu(1.0 - self.discriminator(frames, False)).reshape(b, -1).mean(1)
            given = ops.relu(1.0 + self.discriminator(ops.stop_gradient(decoded), False)).reshape(b, -1).mean(1)
            losses = losses - self.adversarial_weight * fooled + 0.5 * (taken + given)
        return losses
