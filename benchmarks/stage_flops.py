"""The arithmetic of the decoder and of the image encoders, counted from the parameters' shapes, as in
:mod:`benchmarks.flops`: matrix products, convolutions and attention."""

import re
from math import prod
from typing import Mapping, Tuple

from gm.weights.diffusers_names import EMBEDDER_VAE_PREFIX, FIRST_STAGE_PREFIX, VISUAL_PREFIX

Shapes = Mapping[str, Tuple[int, ...]]  # published name -> shape
LEVEL = re.compile(r"(?:down|up)\.(\d+)\.")
CONV = 4  # axes, from which on a weight is a convolution's


def decoder_flops(shapes: Shapes, frames: int, height: int, width: int) -> int:
    """Decoding latents of (frames, 4, height, width)."""
    return _convolutions(shapes, FIRST_STAGE_PREFIX + "decoder.", "conv_out.", frames, height * width)


def encoder_flops(shapes: Shapes, height: int, width: int) -> int:
    """Both encoders of one picture: CLIP's, and the autoencoder's to a latent of (height, width)."""
    encoder = _convolutions(shapes, EMBEDDER_VAE_PREFIX + "encoder.", "conv_in.", 1, height * width)
    return encoder + _convolutions(shapes, EMBEDDER_VAE_PREFIX + "quant_conv.", "", 1, height * width) + _clip(shapes)


def _convolutions(shapes: Shapes, prefix: str, largest: str, frames: int, pixels: int) -> int:
    """Half of an autoencoder.

    Args:
        largest: the layers over whole pictures that are of no level.
        pixels: of the latent.
    """
    names = {name[len(prefix) :]: shape for name, shape in shapes.items() if name.startswith(prefix)}
    lowest = max((int(match[1]) for match in map(LEVEL.match, names) if match), default=0)
    total = 0
    for name, shape in names.items():
        if not name.endswith("weight") or len(shape) < CONV:
            continue
        count = frames * pixels * 4 ** (lowest - _halvings(name, largest, lowest))
        total += 2 * prod(shape) * count
        if name.endswith("attn_1.q.weight"):  # of a picture's pixels among each other
            total += 4 * shape[0] * count * count // frames
    return total


def _halvings(name: str, largest: str, lowest: int) -> int:
    """How often the picture that a layer makes was halved; a level's change of size comes after its blocks."""
    match = LEVEL.match(name)
    if match:
        return int(match[1]) + (".downsample." in name) - (".upsample." in name)
    return 0 if largest and name.startswith(largest) else lowest


def _clip(shapes: Shapes) -> int:
    names = {name[len(VISUAL_PREFIX) :]: shape for name, shape in shapes.items() if name.startswith(VISUAL_PREFIX)}
    tokens, width = names["positional_embedding"]
    total = 2 * prod(names["conv1.weight"]) * (tokens - 1) + 2 * prod(names["proj"])
    for name, shape in names.items():
        if name.startswith("transformer.") and len(shape) > 1:
            total += 2 * prod(shape) * tokens
        if name.endswith("attn.in_proj_weight"):
            total += 4 * width * tokens**2
    return total
