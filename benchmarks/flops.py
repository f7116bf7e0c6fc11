"""The arithmetic of one UNet step, counted from the parameters' shapes: a multiplication and an addition are two."""

import re
from math import ceil, prod
from typing import Mapping, NamedTuple, Tuple

from gm.weights.diffusers_names import UNET_PREFIX

PER_CLIP = ("time_embed.", "label_emb.")
PER_FRAME = re.compile(r"\.emb_layers\.|\.time_pos_embed\.")
CONTEXT = re.compile(r"\.attn2\.to_([kv])\.")
OVER_ONE_TOKEN = re.compile(r"\.attn2\.to_(q|k|v|out\.0)\.")
SELF_ATTENTION = re.compile(r"\.attn1\.to_q\.")
UPSAMPLING = re.compile(r"output_blocks\.\d+\.\d+\.conv\.weight")
MATRIX = 2  # axes, from which on a weight is one


class Clip(NamedTuple):
    """What a step is computed for."""

    batch: int  # clips, both guidance halves counted
    frames: int
    height: int  # of the latents
    width: int


def unet_flops(shapes: Mapping[str, Tuple[int, ...]], clip: Clip, one_token_shortcut: bool = True) -> int:
    """Floating-point operations of one evaluation of the UNet: matrix products, convolutions and attention.

    Args:
        shapes: published name -> shape.
        one_token_shortcut: count cross-attention over the one context token as what it amounts to, its value: one
            vector for each clip. False counts it as written, with queries and keys, one context token for each frame.
    """
    names = {name[len(UNET_PREFIX) :]: shape for name, shape in shapes.items() if name.startswith(UNET_PREFIX)}
    levels = _levels(names)
    total = 0
    for name, shape in names.items():
        if not name.endswith(".weight") or len(shape) < MATRIX:
            continue
        doubled = bool(UPSAMPLING.match(name))
        pixels = _pixels(clip, levels[_block(name)] - doubled)
        total += 2 * prod(shape) * _applications(name, clip, pixels, one_token_shortcut)
        total += _attention(name, shape[0], clip, pixels, one_token_shortcut)
    return total


def _applications(name: str, clip: Clip, pixels: int, one_token_shortcut: bool) -> int:
    """How often a weight is multiplied by a vector."""
    if name.startswith(PER_CLIP):
        return clip.batch
    if one_token_shortcut and OVER_ONE_TOKEN.search(name):
        return 0 if re.search(r"to_[qk]\.", name) else clip.batch
    if PER_FRAME.search(name):
        return clip.batch * clip.frames
    if CONTEXT.search(name):
        return clip.batch * (pixels if ".time_stack." in name else clip.frames)
    return clip.batch * clip.frames * pixels


def _attention(name: str, width: int, clip: Clip, pixels: int, one_token_shortcut: bool) -> int:
    """Products of queries, keys and values, where `name` is the weight of the queries."""
    temporal = ".time_stack." in name
    tokens, sequences = (clip.frames, clip.batch * pixels) if temporal else (pixels, clip.batch * clip.frames)
    if SELF_ATTENTION.search(name):
        return 4 * width * sequences * tokens**2
    if ".attn2.to_q." in name and not one_token_shortcut:
        return 4 * width * sequences * tokens
    return 0


def _block(name: str) -> str:
    return ".".join(name.split(".")[:2])


def _levels(names: Mapping[str, Tuple[int, ...]]) -> Mapping[str, int]:
    """Block -> how often its layers' pixels were halved; a convolution that doubles them comes last in its block."""
    level, levels = 0, {}
    blocks = dict.fromkeys(map(_block, names))
    for part in ("input_blocks", "middle_block", "output_blocks"):
        for block in sorted((b for b in blocks if b.startswith(part)), key=lambda b: int(b.rpartition(".")[2])):
            level += f"{block}.0.op.weight" in names
            levels[block] = level
            level -= any(UPSAMPLING.match(name) for name in names if _block(name) == block)
    return {block: levels.get(block, 0) for block in blocks}


def _pixels(clip: Clip, level: int) -> int:
    return ceil(clip.height / 2**level) * ceil(clip.width / 2**level)
