"""Published tensors as the diffusers layout's and back, and stand-ins for those that the layout lacks."""

from typing import Dict, List, Mapping, Tuple

import numpy as np

from gm.weights.tensor_source import Raw, TensorInfo, decode
from svd_tools.conversion.casts import cast, encode
from svd_tools.conversion.key_map import (
    CLIP_PREFIX,
    CONV_1X1,
    EMBEDDER_VAE_PREFIX,
    FIRST_STAGE_PREFIX,
    TRANSPOSED,
    VISUAL_PREFIX,
    Place,
    diffusers_places,
    has_no_place,
    is_plain_decoder,
)
from svd_tools.conversion.lazy_tensor import (
    LazyTensor,
    Tensors,
    identity_conv,
    reshaped,
    split,
    stacked,
    transposed,
    zeros,
)

Shape = Tuple[int, ...]


def diffusers_shapes(wanted: Mapping[str, Shape]) -> Dict[str, Shape]:
    """The layout's tensors, "unet/conv_in.weight" and so on, for a network of these published names and shapes."""
    shapes = {}
    for name, place in diffusers_places(wanted).items():
        for full_name in full_names(place):
            shapes[full_name] = _shape_there(wanted[name], place)
    return shapes


def full_names(place: Place) -> List[str]:
    """A place's names with the sub-folder before them."""
    return [f"{place.component}/{name}" for name in place.names]


def to_diffusers(published: Tensors) -> Tensors:
    """The published tensors that have a place in the layout, as the layout has them."""
    result: Tensors = {}
    for name, place in diffusers_places(published).items():
        tensor = published[name]
        if place.layout == TRANSPOSED:
            tensor = transposed(tensor)
        elif place.layout == CONV_1X1:
            tensor = reshaped(tensor, tensor.info.shape[:2])
        parts = [tensor] if len(place.names) == 1 else split(tensor, len(place.names))
        result.update(zip(full_names(place), parts))
    return result


def from_diffusers(tensors: Tensors, wanted: Mapping[str, Shape]) -> Tensors:
    """The wanted published tensors that the layout's tensors make up; those that they do not are left out.

    The shapes must be those of :func:`diffusers_shapes`.
    """
    result: Tensors = {}
    for name, place in diffusers_places(wanted).items():
        names = full_names(place)
        if not all(part in tensors for part in names):
            continue
        tensor = stacked([tensors[part] for part in names])
        if place.layout == TRANSPOSED:
            tensor = transposed(tensor)
        elif place.layout == CONV_1X1:
            tensor = reshaped(tensor, wanted[name])
        result[name] = tensor
    return result


def stand_ins(published: Tensors, wanted: Mapping[str, Shape]) -> Tensors:
    """Tensors for the wanted names that are missing and have no place in the diffusers layout.

    * The first stage's encoder is the conditioner's, with `quant_conv` (a 1x1 convolution after the last layer)
      multiplied into `conv_out`, for the first stage has none: it gives the same latents.
    * The conditioner's decoder, which nothing runs, gets the first stage's spatial layers and an identity.
    * CLIP's text tensors, which nothing reads, are zero.
    """
    missing = [name for name in wanted if name not in published and has_no_place(name)]
    return {name: _stand_in(name, wanted, published) for name in missing}


def _stand_in(name: str, wanted: Mapping[str, Shape], published: Tensors) -> LazyTensor:
    if name.startswith(FIRST_STAGE_PREFIX):
        layer = name[len(FIRST_STAGE_PREFIX) :]
        if layer.startswith("encoder.conv_out.") and not is_plain_decoder(wanted):
            return _with_quant_conv(layer.rpartition(".")[2], published)
        return published[EMBEDDER_VAE_PREFIX + layer]
    if name.startswith(CLIP_PREFIX):
        return zeros(TensorInfo(published[VISUAL_PREFIX + "proj"].info.dtype, tuple(wanted[name])), "zeros (unused)")
    twin = FIRST_STAGE_PREFIX + name[len(EMBEDDER_VAE_PREFIX) :]
    if twin in published:
        return published[twin]
    dtype = published[FIRST_STAGE_PREFIX + "decoder.conv_in.weight"].info.dtype
    info = TensorInfo("F32", tuple(wanted[name]))
    make = identity_conv if len(info.shape) == 4 else zeros
    return cast(make(info, "identity (unused)"), dtype)


def _with_quant_conv(kind: str, published: Tensors) -> LazyTensor:
    """`encoder.conv_out`'s weight or bias with `quant_conv` after it, as one convolution."""
    quant = published[EMBEDDER_VAE_PREFIX + "quant_conv.weight"]
    shift = published[EMBEDDER_VAE_PREFIX + "quant_conv.bias"]
    conv = published[EMBEDDER_VAE_PREFIX + "encoder.conv_out." + kind]

    def load() -> Raw:
        matrix = _values(quant)[:, :, 0, 0]  # o c
        values = np.tensordot(matrix, _values(conv), axes=1)  # o c, c (i h w) -> o (i h w)
        if kind == "bias":
            values = values + _values(shift)
        return encode(values, conv.info.dtype)

    return LazyTensor(conv.info, f"{conv.origin} with {quant.origin}", load)


def _values(tensor: LazyTensor) -> np.ndarray:
    return decode(tensor.load(), tensor.info, tensor.origin).astype(np.float64)


def _shape_there(shape: Shape, place: Place) -> Shape:
    if place.layout == TRANSPOSED:
        return tuple(reversed(shape))
    if place.layout == CONV_1X1:
        return tuple(shape[:2])
    return (shape[0] // len(place.names), *shape[1:])
