"""Checkpoints of ComfyUI's node ImageOnlyCheckpointSave in the published names.

They hold the UNet and the first stage as published; CLIP in transformers' names behind OpenCLIP's prefix; no
autoencoder of the conditioner, because ComfyUI encodes with the first stage's, and without `quant_conv`; and the noise
levels as two numbers.
"""

from typing import Mapping, Optional, Tuple

import numpy as np

from gm.errors import UserError
from gm.weights.diffusers_names import EMBEDDER_VAE_PREFIX, FIRST_STAGE_PREFIX, IMAGE_ENCODER, VISUAL_PREFIX
from gm.weights.tensor_source import TensorInfo, decode
from svd_tools.conversion import lazy_tensor as lazy
from svd_tools.conversion.lazy_tensor import LazyTensor, Tensors

Shape = Tuple[int, ...]
MARK = VISUAL_PREFIX + "vision_model."
SIGMAS = ("edm_vpred.sigma_min", "edm_vpred.sigma_max")
ROUNDING = 1e-3  # relative, of numbers that were stored in fp16


def is_comfyui(tensors: Tensors) -> bool:
    """Whether the names are this layout's."""
    return any(name.startswith(MARK) for name in tensors)


def split_comfyui(
    tensors: Tensors, wanted: Mapping[str, Shape], sigmas: Optional[Tuple[float, float]], what: str
) -> Tuple[Tensors, Tensors]:
    """The tensors under published names, and CLIP's under those of the diffusers layout.

    Args:
        wanted: the network's parameters, published name → shape.
        sigmas: the configuration's lowest and highest noise level, None where it has none.
        what: the file, for error lines.

    Raises:
        UserError: the file's noise levels are others.
    """
    clip = {name: tensor for name, tensor in tensors.items() if name.startswith(VISUAL_PREFIX)}
    published = {name: tensor for name, tensor in tensors.items() if name not in clip and name not in SIGMAS}
    stored = [_number(tensors[name]) for name in SIGMAS if name in tensors]
    if sigmas is not None and stored and not np.allclose(stored, sigmas, rtol=ROUNDING):
        raise UserError(f"{what} was made for sigmas of {stored}, the configuration has {list(sigmas)}; name its own")
    for name in wanted:
        layer = name[len(EMBEDDER_VAE_PREFIX) :]
        if name.startswith(EMBEDDER_VAE_PREFIX) and layer.startswith(("encoder.", "quant_conv.")):
            twin = published.get(FIRST_STAGE_PREFIX + layer)
            if twin is not None or layer.startswith("quant_conv."):
                published[name] = twin or _identity(tuple(wanted[name]))
    return published, {f"{IMAGE_ENCODER}/{name[len(VISUAL_PREFIX) :]}": tensor for name, tensor in clip.items()}


def _identity(shape: Shape) -> LazyTensor:
    make = lazy.identity_conv if len(shape) == 4 else lazy.zeros
    return make(TensorInfo("F32", shape), "identity (ComfyUI encodes without quant_conv)")


def _number(tensor: LazyTensor) -> float:
    return float(decode(tensor.load(), tensor.info, tensor.origin).reshape(-1)[0])
