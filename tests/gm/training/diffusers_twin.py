"""diffusers' UNet with the weights of :func:`tests.gm.training.training_parts.random_unet`, objective in PyTorch."""

from typing import Dict, Sequence

import numpy as np
import torch
from diffusers import UNetSpatioTemporalConditionModel

from gm.weights.diffusers_names import UNET_PREFIX, diffusers_places
from modules.video_unet import VideoUNet
from tests.gm.training.training_parts import CONTEXT, UNET, VECTOR


class Twin:
    """The peer and the map of names.

    Attributes:
        unet: diffusers' network.
        places: our parameter's name -> the peer's.
    """

    def __init__(self, net: VideoUNet, channel_mult: Sequence[int] = UNET["channel_mult"]) -> None:
        width, head = net.model_channels, UNET["num_head_channels"]
        widths = [width * mult for mult in channel_mult]
        plain = len(widths) - 1  # levels without attention, below the first
        self.unet = UNetSpatioTemporalConditionModel(
            block_out_channels=widths,
            down_block_types=["CrossAttnDownBlockSpatioTemporal"] + ["DownBlockSpatioTemporal"] * plain,
            up_block_types=["UpBlockSpatioTemporal"] * plain + ["CrossAttnUpBlockSpatioTemporal"],
            layers_per_block=1,
            num_attention_heads=[width // head for width in widths],
            cross_attention_dim=CONTEXT,
            addition_time_embed_dim=VECTOR // 3,
            projection_class_embeddings_input_dim=VECTOR,
        )
        arrays = {UNET_PREFIX + name: parameter.asnumpy() for name, parameter in net.parameters_and_names()}
        self.places = {name[len(UNET_PREFIX) :]: place.names[0] for name, place in diffusers_places(arrays).items()}
        state = {self.places[name[len(UNET_PREFIX) :]]: torch.from_numpy(np.array(a)) for name, a in arrays.items()}
        self.unet.load_state_dict(state)
        # The vector's three sinusoidal embeddings are made by the peer from numbers; here it takes them as they are.
        self.unet.add_time_proj = torch.nn.Identity()

    def parameters(self) -> Dict[str, torch.nn.Parameter]:
        """Our name -> the peer's parameter."""
        theirs = dict(self.unet.named_parameters())
        return {name: theirs[place] for name, place in self.places.items()}

    def loss(self, latents, cond, sigma, noise) -> torch.Tensor:
        """Mean over clips of λ(σ)·mean|D(z0 + σ n) - z0|², D in its published form (SVD, D.2), in double precision."""
        b, t = latents.shape[:2]
        z0, s = torch.from_numpy(latents).double(), torch.from_numpy(sigma).double().reshape(b, 1, 1, 1, 1)
        x = z0 + s * torch.from_numpy(noise).double()
        image = torch.from_numpy(cond.concat)[:, None].expand(-1, t, -1, -1, -1)
        sample = torch.cat([(x / torch.sqrt(s**2 + 1)).float(), image], dim=2)
        out = self.unet(
            sample,
            0.25 * torch.log(s.flatten()).float(),
            torch.from_numpy(cond.crossattn),
            torch.from_numpy(cond.vector),
        ).sample.double()
        denoised = x / (s**2 + 1) - s / torch.sqrt(s**2 + 1) * out
        weight = (1 + s**2) / s**2
        return (weight * (denoised - z0) ** 2).mean()
