"""The names and shapes of the published Stable Video Diffusion weights, in the three layouts they come in."""

import ast
from pathlib import Path
from typing import Dict, Tuple

SHAPES = Path(__file__).resolve().parent


def read_shapes(file_name: str) -> Dict[str, Tuple[int, ...]]:
    """Name → shape, in the file's order, from one of this folder's tables (`name<TAB>shape` on each line)."""
    rows = (line.split("\t") for line in (SHAPES / file_name).read_text().splitlines())
    return {name: ast.literal_eval(shape) for name, shape in rows}


def published() -> Dict[str, Tuple[int, ...]]:
    """The 2446 tensors of `svd.safetensors`."""
    return read_shapes("svd_safetensors_keys.tsv")


def reference_ckpt() -> Dict[str, Tuple[int, ...]]:
    """The 2446 parameters of the reference toolkit's `.ckpt`."""
    return read_shapes("mindone_svd_ckpt_params.tsv")


def diffusers() -> Dict[str, Tuple[int, ...]]:
    """The 2322 tensors of the diffusers folder, each name with its sub-folder: `unet/conv_in.weight`."""
    return read_shapes("diffusers_svd_keys.tsv")


def stable_diffusion(name: str) -> Dict[str, Tuple[int, ...]]:
    """The tensors of a published file of Stable Diffusion: `sd15` (1131), `sd21` (1228) or `sdxl_base` (2515)."""
    return read_shapes(f"{name}_safetensors_keys.tsv")


def comfyui() -> Dict[str, Tuple[int, ...]]:
    """The 2322 tensors that ComfyUI's ImageOnlyCheckpointSave writes."""
    return read_shapes("comfyui_saved_svd_keys.tsv")
