"""The options of train.py that say what is learnt: the noise of the diffusion, the autoencoder's loss, a LoRA."""

from dataclasses import dataclass
from typing import Optional

from gm.errors import UserError


@dataclass
class SigmaOptions:
    """The noise levels that are trained: ln σ ~ N(P_mean, P_std²), one σ per clip.

    Args:
        P_mean: 1.0 for 576x1024, 0.7 for 320x576; lower for smaller frames.
        P_std: 1.6.
    """

    P_mean: float = 1.0
    P_std: float = 1.6


@dataclass
class CondAugOptions:
    """The noise of the conditioning frame: ln cond_aug ~ N(mean, std²), one value per clip.

    Args:
        mean: of the logarithm.
        std: of the logarithm.
    """

    mean: float = -3.0
    std: float = 0.5


@dataclass
class DropoutOptions:
    """How often a clip is trained without its picture, for classifier-free guidance.

    Args:
        both: probability that CLIP token and latent are dropped.
        token: that only the CLIP token is.
        latent: that only the latent is.
    """

    both: float = 0.1
    token: float = 0.05
    latent: float = 0.05


@dataclass
class AutoencoderOptions:
    """The loss of the stages autoencoder and decoder.

    Args:
        edge_weight: of the differences between neighbouring pixels, and frames, beside the pixels'.
        colour_weight: of the mean colours of blocks of 8x8 pixels.
        rms_weight: of a clip's root mean square error, beside the mean absolute one: large errors count for more.
        anchor_weight: of the distance between the latent's first three channels and the mean red, green and blue of
            their 8x8 pixels, so that no colour is left out (stage autoencoder).
        kl_weight: of the latent's divergence from a unit Gaussian (stage autoencoder).
        latent_noise: standard deviation of the noise added to scaled latents (stage decoder): it learns to forgive.
    """

    edge_weight: float = 0.5
    colour_weight: float = 1.0
    rms_weight: float = 0.0
    anchor_weight: float = 0.0
    kl_weight: float = 1e-3
    latent_noise: float = 0.1

    def check(self) -> None:
        """Raises a UserError for a number out of its range."""
        for name, value in vars(self).items():
            if not value >= 0:
                raise UserError(f"--train.autoencoder.{name} is {value:g}; it is 0 or more")


@dataclass
class LoRAOptions:
    """Low-rank adaptation in place of training the layers themselves.

    Args:
        rank: 0 trains no LoRA but the layers.
        alpha: the branch counts alpha / rank; by default once.
        targets: temporal, spatial, all (attention layers), or a regular expression for names of linear layers.
    """

    rank: int = 0
    alpha: Optional[float] = None
    targets: str = "temporal"
