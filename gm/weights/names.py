"""Parameter names: the published checkpoints' and the reference toolkit's, mapped onto each other.

The network's own names are the published ones (`…norm.weight`). The reference toolkit (mindone's `examples/svd`)
stores the same tensors, unchanged, under MindSpore's customary names: `gamma` and `beta` for the weight and bias of a
normalisation, `embedding_table` for an embedding's, and `conv3d` for the video decoder's last convolution.
Both functions are pure, leave any other name as it is, and are each other's inverse on the published names.
"""

import re

# Every normalisation of the network: GroupNorm and LayerNorm, named or in a numbered sequence.
_NORM = re.compile(r"(?P<layer>(?:^|\.)(?:norm\w*|ln_\w+|in_layers\.0|out_layers\.0|out\.0))\.(?P<kind>weight|bias)$")
_NORM_TO_REFERENCE = {"weight": "gamma", "bias": "beta"}
_NORM_FROM_REFERENCE = {"gamma": "weight", "beta": "bias"}

_EMBEDDING, _REFERENCE_EMBEDDING = "token_embedding.weight", "token_embedding.embedding_table"
_TIME_CONV, _REFERENCE_TIME_CONV = "decoder.conv_out.time_mix_conv.", "decoder.conv_out.conv3d."


def to_reference(name: str) -> str:
    """The reference toolkit's `.ckpt` name of a published parameter: `….norm.weight` → `….norm.gamma`."""
    norm = _NORM.search(name)
    if norm:
        return f"{name[: norm.end('layer')]}.{_NORM_TO_REFERENCE[norm['kind']]}"
    if name.endswith(_EMBEDDING):
        return name[: -len(_EMBEDDING)] + _REFERENCE_EMBEDDING
    return name.replace(_TIME_CONV, _REFERENCE_TIME_CONV)


def from_reference(name: str) -> str:
    """The published name of a reference toolkit's parameter; a published name is returned as it is."""
    layer, _, kind = name.rpartition(".")
    if kind in _NORM_FROM_REFERENCE:
        return f"{layer}.{_NORM_FROM_REFERENCE[kind]}"
    if name.endswith(_REFERENCE_EMBEDDING):
        return name[: -len(_REFERENCE_EMBEDDING)] + _EMBEDDING
    return name.replace(_REFERENCE_TIME_CONV, _TIME_CONV)
