"""Every tensor of the network, under its published name, from whatever files the user has."""

import logging
from typing import Dict, Mapping, Optional, Set, Tuple

from gm.errors import UserError
from gm.weights.checkpoint import compare_names
from svd_tools.conversion.diffusers_layout import diffusers_shapes, from_diffusers, stand_ins
from svd_tools.conversion.key_map import (
    EMBEDDER_VAE_PREFIX,
    FIRST_STAGE_PREFIX,
    IMAGE_ENCODER,
    UNET,
    UNET_PREFIX,
    VAE,
    VISUAL_PREFIX,
    has_no_place,
)
from svd_tools.conversion.lazy_tensor import Tensors, infos
from svd_tools.conversion.weight_files import COMPONENTS, Weights

Shape = Tuple[int, ...]
_log = logging.getLogger(__name__)

_PARTS = {
    UNET_PREFIX: UNET,
    FIRST_STAGE_PREFIX: VAE,
    EMBEDDER_VAE_PREFIX: VAE,
    VISUAL_PREFIX: IMAGE_ENCODER,
}  # a source has all of a part or nothing of it
_PREFIXES = {
    "add_embedding.linear_1.weight": f"{UNET}/",
    "decoder.time_conv_out.weight": f"{VAE}/",
    "vision_model.embeddings.class_embedding": f"{IMAGE_ENCODER}/",
    "input_blocks.0.0.weight": UNET_PREFIX,
    "diffusion_model.input_blocks.0.0.weight": "model.",
}  # a name that tells a part that was saved alone → what its names lack


def assemble(
    weights: Weights, wanted: Mapping[str, Shape], base: Optional[Weights] = None, drop_extra: bool = False
) -> Tensors:
    """All wanted tensors, in the network's order: one content gives one hash, whichever way it came.

    Args:
        weights: the source: published names, the diffusers layout, or one part of either (a UNet alone).
        wanted: the network's parameters, published name → shape.
        base: supplies what the source lacks.
        drop_extra: leaves out tensors that the network does not have, instead of refusing the source.

    Raises:
        UserError: missing, extra or misshapen tensors, all listed; a part alone without a base; a base without need.
    """
    have = _published(weights, wanted, drop_extra)
    missing = [name for name in wanted if name not in have and not has_no_place(name)]
    if base is not None:
        if not missing and all(name in have for name in wanted):
            raise UserError(f"--base: {weights.path} holds every tensor itself; leave --base out")
        have = {**_published(base, wanted, drop_extra), **have}
    elif missing and _parts(have):
        raise UserError(
            f"{weights.path} holds only the {' and the '.join(sorted(_parts(have)))}; "
            "name a whole checkpoint with --base to supply the rest"
        )
    have.update(_fill(have, wanted))
    compare_names(wanted, infos(have), what=str(base.path if base else weights.path))
    return {name: have[name] for name in wanted}


def _published(weights: Weights, wanted: Mapping[str, Shape], drop_extra: bool) -> Tensors:
    """A source's tensors under their published names; each part that it has is complete and of the right shapes."""
    tensors = _with_part_prefix(weights.tensors)
    parts = {name.partition("/")[0] for name in tensors} & set(COMPONENTS)
    if parts:
        expected = {n: s for n, s in diffusers_shapes(wanted).items() if n.partition("/")[0] in parts}
    else:
        present = _parts(tensors)
        needed = {name for name in wanted if _part(name) in present and not has_no_place(name)}
        expected = {name: shape for name, shape in wanted.items() if name in tensors or name in needed}
    if drop_extra:
        tensors = _without_extra(tensors, expected)
    compare_names(expected or wanted, infos(tensors), what=str(weights.path))
    if not parts:
        return dict(tensors)
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
    if any(name not in have for name in wanted if not has_no_place(name)):
        return {}
    filled = stand_ins(have, wanted)
    if filled:
        _log.warning(
            "%d tensors that the source lacks were filled in (the first stage's encoder, from the conditioner's; the "
            "conditioner's decoder and CLIP's text tower, which nothing reads); --base takes them from a checkpoint",
            len(filled),
        )
    return filled


def _part(name: str) -> str:
    return next((part for prefix, part in _PARTS.items() if name.startswith(prefix)), "")


def _parts(published: Dict[str, object]) -> Set[str]:
    """The parts of the network that a source has at least some of."""
    return {_part(name) for name in published} - {""}
