"""Published tensors as the diffusers layout's and back, and a network's tensors from whatever files there are."""

import logging
from typing import Dict, List, Mapping, Optional, Set, Tuple

import numpy as np

from gm.errors import UserError
from gm.weights.checkpoint import compare_names
from gm.weights.diffusers_names import (
    CLIP_PREFIX,
    CONV_1X1,
    EMBEDDER_VAE_PREFIX,
    FIRST_STAGE_PREFIX,
    IMAGE_ENCODER,
    OPEN_CLIP_2_PREFIX,
    SD_TEXT_PREFIX,
    TEXT_ENCODER,
    TEXT_ENCODER_2,
    TRANSPOSED,
    UNET,
    UNET_PREFIX,
    VAE,
    VISUAL_PREFIX,
    XL_TEXT_2_PREFIX,
    XL_TEXT_PREFIX,
    Place,
    diffusers_places,
    is_plain_decoder,
    placeless,
)
from gm.weights.tensor_source import Raw, TensorInfo, decode
from svd_tools.conversion import lazy_tensor as lazy
from svd_tools.conversion.comfyui_layout import is_comfyui, split_comfyui
from svd_tools.conversion.lazy_tensor import LazyTensor, Tensors, infos
from svd_tools.conversion.weight_files import COMPONENTS, Weights

Shape = Tuple[int, ...]
_log = logging.getLogger(__name__)

_PARTS = {
    UNET_PREFIX: UNET,
    FIRST_STAGE_PREFIX: VAE,
    EMBEDDER_VAE_PREFIX: VAE,
    VISUAL_PREFIX: IMAGE_ENCODER,
    SD_TEXT_PREFIX: TEXT_ENCODER,
    OPEN_CLIP_2_PREFIX: TEXT_ENCODER,
    XL_TEXT_PREFIX: TEXT_ENCODER,
    XL_TEXT_2_PREFIX: TEXT_ENCODER_2,
}  # a source has all of a part or nothing of it
_PREFIXES = {
    "add_embedding.linear_1.weight": f"{UNET}/",
    "down_blocks.0.resnets.0.norm1.weight": f"{UNET}/",
    "decoder.time_conv_out.weight": f"{VAE}/",
    "vision_model.embeddings.class_embedding": f"{IMAGE_ENCODER}/",
    "input_blocks.0.0.weight": UNET_PREFIX,
    "diffusion_model.input_blocks.0.0.weight": "model.",
}  # a name that tells a part that was saved alone → what its names lack


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
            tensor = lazy.transposed(tensor)
        elif place.layout == CONV_1X1:
            tensor = lazy.reshaped(tensor, tensor.info.shape[:2])
        parts = [tensor] if len(place.names) == 1 else lazy.split(tensor, len(place.names))
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
        tensor = lazy.stacked([tensors[part] for part in names])
        if place.layout == TRANSPOSED:
            tensor = lazy.transposed(tensor)
        elif place.layout == CONV_1X1:
            tensor = lazy.reshaped(tensor, wanted[name])
        result[name] = tensor
    return result


def stand_ins(published: Tensors, wanted: Mapping[str, Shape]) -> Tensors:
    """Tensors for the wanted names that are missing and have no place in the diffusers layout.

    * The first stage's encoder is the conditioner's, with `quant_conv` (a 1x1 convolution after the last layer)
      multiplied into `conv_out`, for the first stage has none: it gives the same latents.
    * The conditioner's decoder, which nothing runs, gets the first stage's spatial layers and an identity.
    * Text tensors that nothing reads are zero.
    """
    missing = placeless(wanted) - set(published)
    return {name: _stand_in(name, wanted, published) for name in wanted if name in missing}


def assemble(
    weights: Weights,
    wanted: Mapping[str, Shape],
    base: Optional[Weights] = None,
    drop_extra: bool = False,
    sigmas: Optional[Tuple[float, float]] = None,
) -> Tensors:
    """All wanted tensors, in the network's order: one content gives one hash, whichever way it came.

    Args:
        weights: the source: published names, ComfyUI's, the diffusers layout, or one part of these (a UNet alone).
        wanted: the network's parameters, published name → shape.
        base: supplies what the source lacks.
        drop_extra: leaves out tensors that the network does not have, instead of refusing the source.
        sigmas: the configuration's lowest and highest noise level, which ComfyUI's files have too.

    Raises:
        UserError: missing, extra or misshapen tensors, all listed; a part alone without a base; a base without need.
    """
    have = _published(weights, wanted, drop_extra, sigmas)
    missing = set(wanted) - set(have) - placeless(wanted)
    if base is not None:
        if not missing and all(name in have for name in wanted):
            raise UserError(f"--base: {weights.path} holds every tensor itself; leave --base out")
        have = {**_published(base, wanted, drop_extra, sigmas), **have}
    elif missing and _parts(have):
        raise UserError(
            f"{weights.path} holds only the {' and the '.join(sorted(_parts(have)))}; "
            "name a whole checkpoint with --base to supply the rest"
        )
    have.update(_fill(have, wanted))
    compare_names(wanted, infos(have), what=str(base.path if base else weights.path), converting=True)
    return {name: have[name] for name in wanted}


def _stand_in(name: str, wanted: Mapping[str, Shape], published: Tensors) -> LazyTensor:
    if name.startswith(FIRST_STAGE_PREFIX):
        layer = name[len(FIRST_STAGE_PREFIX) :]
        if layer.startswith("encoder.conv_out.") and not is_plain_decoder(wanted):
            return _with_quant_conv(layer.rpartition(".")[2], published)
        return published[EMBEDDER_VAE_PREFIX + layer]
    if not name.startswith(EMBEDDER_VAE_PREFIX):
        twin = VISUAL_PREFIX + "proj" if name.startswith(CLIP_PREFIX) else UNET_PREFIX + "out.2.weight"
        dtype = published[twin].info.dtype
        return lazy.zeros(TensorInfo(dtype, tuple(wanted[name])), "zeros (unused)")
    twin = FIRST_STAGE_PREFIX + name[len(EMBEDDER_VAE_PREFIX) :]
    if twin in published:
        return published[twin]
    dtype = published[FIRST_STAGE_PREFIX + "decoder.conv_in.weight"].info.dtype
    info = TensorInfo("F32", tuple(wanted[name]))
    make = lazy.identity_conv if len(info.shape) == 4 else lazy.zeros
    return lazy.cast(make(info, "identity (unused)"), dtype)


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
        return lazy.encode(values, info.dtype)

    info = TensorInfo(lazy.writable(conv.info.dtype), conv.info.shape)
    return LazyTensor(info, f"{conv.origin} with {quant.origin}", load)


def _values(tensor: LazyTensor) -> np.ndarray:
    return decode(tensor.load(), tensor.info, tensor.origin).astype(np.float64)


def _shape_there(shape: Shape, place: Place) -> Shape:
    if place.layout == TRANSPOSED:
        return tuple(reversed(shape))
    if place.layout == CONV_1X1:
        return tuple(shape[:2])
    return (shape[0] // len(place.names), *shape[1:])


def _published(
    weights: Weights, wanted: Mapping[str, Shape], drop_extra: bool, sigmas: Optional[Tuple[float, float]]
) -> Tensors:
    """A source's tensors under their published names; each part that it has is complete and of the right shapes."""
    tensors = _with_part_prefix(weights.tensors)
    clip: Tensors = {}
    if is_comfyui(tensors):
        tensors, clip = split_comfyui(tensors, wanted, sigmas, str(weights.path))
        of_clip = {name: s for name, s in diffusers_shapes(wanted).items() if name.startswith(f"{IMAGE_ENCODER}/")}
        compare_names(of_clip, infos(clip), what=f"{weights.path}'s CLIP", converting=True)
    parts = {name.partition("/")[0] for name in tensors} & set(COMPONENTS)
    if parts:
        expected = {n: s for n, s in diffusers_shapes(wanted).items() if n.partition("/")[0] in parts}
    else:
        present = _parts(tensors)
        needed = {name for name in wanted if _part(name) in present} - placeless(wanted)
        expected = {name: shape for name, shape in wanted.items() if name in tensors or name in needed}
    if drop_extra:
        tensors = _without_extra(tensors, expected)
    compare_names(expected or wanted, infos(tensors), what=str(weights.path), converting=True)
    if not parts:
        return {**tensors, **from_diffusers(clip, wanted)}
    leftovers = {name: tensor for name, tensor in weights.leftovers.items() if name in wanted}
    compare_names({name: wanted[name] for name in leftovers}, infos(leftovers), what=f"{weights.path}'s leftovers")
    return {**from_diffusers(tensors, wanted), **leftovers}


def _with_part_prefix(tensors: Tensors) -> Tensors:
    """Names of a part that was saved alone as they are in a whole checkpoint or folder."""
    prefix = next((prefix for mark, prefix in _PREFIXES.items() if mark in tensors), "")
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _without_extra(tensors: Tensors, expected: Mapping[str, Shape]) -> Tensors:
    extra = [name for name in tensors if name not in expected]
    if extra:
        _log.warning("--drop_extra: left out %d tensors that the network lacks: %s", len(extra), ", ".join(extra))
    return {name: tensor for name, tensor in tensors.items() if name in expected}


def _fill(have: Tensors, wanted: Mapping[str, Shape]) -> Tensors:
    """Stand-ins for what the diffusers layout lacks, where nothing better is at hand."""
    if set(wanted) - set(have) - placeless(wanted):
        return {}
    filled = stand_ins(have, wanted)
    if filled:
        _log.warning(
            "%d tensors that the source lacks were filled in (of a video model the first stage's encoder, from the "
            "conditioner's; what nothing reads); --base takes them from a checkpoint",
            len(filled),
        )
    return filled


def _part(name: str) -> str:
    return next((part for prefix, part in _PARTS.items() if name.startswith(prefix)), "")


def _parts(published: Dict[str, object]) -> Set[str]:
    """The parts of the network that a source has at least some of."""
    return {_part(name) for name in published} - {""}
