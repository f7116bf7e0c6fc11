"""Parameter names: those of a configuration, those of a checkpoint, and those of the reference toolkit.

The network's own names are the published ones (`…norm.weight`). The reference toolkit (mindone's `examples/svd`)
stores the same tensors, unchanged, under MindSpore's customary names: `gamma` and `beta` for the weight and bias of a
normalisation, `embedding_table` for an embedding's, and `conv3d` for the video decoder's last convolution.
`to_reference` and `from_reference` leave any other name as it is and are each other's inverse on the published names.
"""

import re
from pathlib import Path
from typing import Dict, Iterable, Mapping, Tuple, Union

from gm.config.factory import load_model
from gm.errors import UserError
from gm.files import in_a_file
from gm.weights.tensor_source import WEIGHT_TYPES, TensorInfo

Shape = Tuple[int, ...]

# Every normalisation of the network: GroupNorm and LayerNorm, named or in a numbered sequence.
_NORM = re.compile(r"(?P<layer>(?:^|\.)(?:norm\w*|ln_\w+|in_layers\.0|out_layers\.0|out\.0))\.(?P<kind>weight|bias)$")
_NORM_TO_REFERENCE = {"weight": "gamma", "bias": "beta"}
_NORM_FROM_REFERENCE = {"gamma": "weight", "beta": "bias"}

# Around a model or a part of it: PyTorch's data parallelism and compiler.
_WRAPPER = re.compile(r"(^|(?<=\.))(module|_orig_mod)\.")

_EMBEDDING, _REFERENCE_EMBEDDING = "token_embedding.weight", "token_embedding.embedding_table"
_TIME_CONV, _REFERENCE_TIME_CONV = "decoder.conv_out.time_mix_conv.", "decoder.conv_out.conv3d."

# What names tell about a checkpoint, and whether convert.py reads such a one: the first whose mark stands in any name.
_KINDS = (
    ("lora_", "a LoRA, which goes on top of a checkpoint (the flag ending in lora)", False),
    (".visual.vision_model.", "a checkpoint as ComfyUI saves it", True),
    ("spatial_res_block", "a UNet in the diffusers layout", True),
    ("vision_model.encoder.", "an image encoder in the transformers layout", True),
    ("down_blocks.", "in the diffusers layout", True),
    ("moment1.", "a training state with the optimizer's moments, not the weights alone", False),
    ("adam_m.", "a training state with the optimizer's moments, not the weights alone", False),
)
# What published files of Stable Diffusion hold beside the weights: constants of the training, and a moving average.
_LEFTOVERS = re.compile(
    r"betas$|alphas_cumprod|sqrt_|log_one_minus_alphas_cumprod$|posterior_|logvar$|model_ema\.|"
    r"cond_stage_model\.model\.attn_mask$|.*\.text_model\.embeddings\.position_ids$"
)
_CONVERT = "; svd_tools/convert.py converts it"
_PLAIN_DECODER = "first_stage_model.post_quant_conv.weight"
_TIME_STACK = ".time_stack."
_UNET = "model.diffusion_model."


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


def published_name(name: str) -> str:
    """The published name of a parameter as a file has it: the reference toolkit's, or inside PyTorch's wrappers."""
    return from_reference(_WRAPPER.sub("", name))


def expected_parameters(config: Union[str, Path], flag: str = "--config") -> Dict[str, Shape]:
    """Published name -> shape of every parameter of the model that a YAML file defines, without memory for values."""
    return load_model(config, flag=flag).parameter_shapes()


def compare_names(
    wanted: Mapping[str, Shape], source_info: Mapping[str, TensorInfo], *, what: str, converting: bool = False
) -> None:
    """Checks that a checkpoint has exactly the wanted tensors, up to the known leftovers of a training.

    Args:
        wanted: the network's parameters, name → shape.
        source_info: the checkpoint's tensors.
        what: the checkpoint in the message, usually its path.
        converting: svd_tools/convert.py is what runs, so that it is no advice.

    Raises:
        UserError: a summary, a guess at the checkpoint's kind, and the file that lists every missing, extra and
            misshapen tensor on a line of its own.
    """
    missing = [name for name in wanted if name not in source_info]
    extra = [name for name in source_info if name not in wanted and not _LEFTOVERS.match(name)]
    both = [name for name in wanted if name in source_info]
    misshapen = [name for name in both if source_info[name].shape != tuple(wanted[name])]
    mistyped = [name for name in both if source_info[name].dtype not in WEIGHT_TYPES]
    if not (missing or extra or misshapen or mistyped):
        return
    found = {"missing": missing, "extra": extra, "of another shape": misshapen, "of a type of no weights": mistyped}
    counts = ((len(names), kind) for kind, names in found.items())
    summary = ", ".join(f"{count} {kind}" for count, kind in counts if count)
    lines = [f"missing: {name} {tuple(wanted[name])}" for name in missing]
    lines += [f"extra: {name} {source_info[name].shape}" for name in extra]
    lines += [f"shape: {name} is {source_info[name].shape}, {tuple(wanted[name])} is wanted" for name in misshapen]
    lines += [f"type: {name} is stored as {source_info[name].dtype}, no floating-point numbers" for name in mistyped]
    raise UserError(
        f"{what} does not fit the network of the configuration: {summary} of {len(wanted)} tensors; it seems to be "
        f"{checkpoint_kind(source_info, wanted, converting)}; {in_a_file(lines)}"
    )


def kind_of_names(names: Iterable[str], converting: bool = False) -> str:
    """What the names of a checkpoint's tensors tell about it, "" where they tell nothing."""
    names = list(names)
    for mark, kind, converted in _KINDS:
        if any(mark in name for name in names):
            return kind + (_CONVERT if converted and not converting else "")
    return ""


def checkpoint_kind(names: Iterable[str], wanted: Iterable[str], converting: bool = False) -> str:
    """What a checkpoint that does not fit seems to be, in words, judged by its names."""
    have, want = set(names), set(wanted)
    kind = kind_of_names(have - want, converting)
    if kind:
        return kind
    prefix = _common_prefix(have, want)
    if prefix:
        return f"a checkpoint whose names all begin with {prefix!r}; save it without that prefix"
    if _PLAIN_DECODER in have - want:
        return "the *_image_decoder variant; use a configuration with the image decoder"
    if _PLAIN_DECODER in want - have and have & want:
        return "a checkpoint with the video decoder; use a configuration without the image decoder"
    unet = [name for name in have if name.startswith(_UNET)]
    if unet and not any(_TIME_STACK in name for name in unet):
        return "an image model without temporal layers, such as Stable Diffusion"
    if have and have <= {name for name in want if name.startswith(_UNET)}:
        return "a UNet alone" + ("" if converting else "; svd_tools/convert.py --base adds it to a checkpoint")
    if not have & want:
        return "of another architecture: no tensor has a name that the network knows"
    if have == want:
        return "of the same architecture at another width"
    return "an incomplete or altered checkpoint, or one of another configuration"


def _common_prefix(have: Iterable[str], want: Iterable[str]) -> str:
    """What stands before a wanted name in every name, if there is such a thing."""
    first = next(iter(have), "")
    ends = [name for name in want if first.endswith(f".{name}")]
    prefix = first[: -len(max(ends, key=len))] if ends else ""
    return prefix if all(name.startswith(prefix) for name in have) else ""
