"""Converts a LoRA between this toolkit's file and those of diffusers, PEFT and kohya's scripts.

    python svd_tools/convert_lora.py --lora=camera.safetensors --out=lora.safetensors
    python svd_tools/convert_lora.py --lora=lora.safetensors --to=diffusers --out=pytorch_lora_weights.safetensors

The layers' names are known as this toolkit and ComfyUI write them (`diffusion_model.` and the published name), as
diffusers and PEFT do (`unet.` or `base_model.model.` and the diffusers name), as kohya's scripts do (`lora_unet_` and
either name with underscores), and as diffusers did in 2023 (`….processor.to_q_lora.down.weight`). In diffusers' file
alpha is multiplied into B, because programs that read it take alpha to be the rank.
"""

import re
import sys
from pathlib import Path
from typing import Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from gm.config.command_parser import CommandParser
from gm.errors import UserError, run_command
from gm.files import make_output_dir
from gm.weights.checkpoint import open_checkpoint, save_safetensors
from gm.weights.lora_file import LowRank, low_rank, write_lora
from gm.weights.names import expected_parameters
from svd_tools.conversion.key_map import UNET_PREFIX, diffusers_places
from svd_tools.conversion.targets import new_file

DEFAULT_CONFIG = Path(__file__).resolve().parents[1] / "configs" / "svd.yaml"
TOOLKIT, DIFFUSERS = "toolkit", "diffusers"
SUFFIX = ".safetensors"
MAX_NAMES = 5
WEIGHT = ".weight"
TOOLKIT_PREFIXES = ("diffusion_model.", UNET_PREFIX)
DIFFUSERS_PREFIXES = ("unet.", "", "base_model.model.", "unet.base_model.model.")
KOHYA_PREFIX = "lora_unet_"
A, B, ALPHA = "A", "B", "alpha"

_ENDS = re.compile(
    r"^(?P<layer>.+?)(?:\.|_)(?:lora_(?P<ab>[AB])(?:\.\w+)?\.weight|lora[._](?P<way>down|up)\.weight|(?P<alpha>alpha))$"
)
_PARTS = {"down": A, "up": B}


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Converts as the flags say and writes one line for the file that came out of it.

    Raises:
        UserError: unusable flags, a file that is no LoRA of this network, no room.
    """
    args = _parser().parse_args(sys.argv[1:] if argv is None else argv)
    out = new_file(args.out, [SUFFIX])
    wanted = expected_parameters(args.config)
    layers, metadata = read_any_lora(Path(args.lora), known_layers(wanted))
    make_output_dir(out.parent, "--out")
    if args.to == DIFFUSERS:
        save_safetensors(out, diffusers_tensors(layers, diffusers_layers(wanted)), metadata)
    else:
        write_lora(out, layers, metadata)
    ranks = sorted({layer.rank for layer in layers.values()})
    sys.stdout.write(f"wrote {out}: {len(layers)} layers of rank {', '.join(map(str, ranks))}\n")


def read_any_lora(path: Path, known: Mapping[str, str]) -> Tuple[Dict[str, LowRank], Mapping[str, str]]:
    """The layers of a LoRA file of any known kind, by their published names, and the file's text entries.

    Raises:
        UserError: the file cannot be read, holds other tensors than a LoRA's, or layers that `known` lacks.
    """
    parts: Dict[str, Dict[str, np.ndarray]] = {}
    with open_checkpoint(path) as source:
        entries = {name: parse_name(name) for name in source.info}
        _refuse(path, [name for name, entry in entries.items() if entry is None], "tensors that are no LoRA's")
        _refuse(path, [e.layer for e in entries.values() if e.layer not in known], "layers that the network lacks")
        for name, entry in entries.items():
            parts.setdefault(known[entry.layer], {})[entry.part] = np.array(source.read(name))
        _refuse(path, [layer for layer, have in parts.items() if not {A, B} <= set(have)], "layers without an A or a B")
        layers = {
            name: low_rank(have[A], have[B], have.get(ALPHA), f"--lora: {path}: {name}") for name, have in parts.items()
        }
        return layers, source.metadata


def diffusers_tensors(layers: Mapping[str, LowRank], names: Mapping[str, str]) -> Dict[str, np.ndarray]:
    """A and B of every layer under diffusers' names, alpha multiplied into B."""
    tensors = {}
    for published, layer in layers.items():
        stem = DIFFUSERS_PREFIXES[0] + names[published]
        scale = layer.alpha / layer.rank
        tensors[f"{stem}.lora_A.weight"] = layer.a.astype(np.float32)
        tensors[f"{stem}.lora_B.weight"] = (scale * layer.b.astype(np.float64)).astype(np.float32)
    return tensors


class Entry(NamedTuple):
    """What a tensor of a LoRA file is."""

    layer: str  # as the file names it
    part: str  # A, B or ALPHA


def parse_name(name: str) -> Optional[Entry]:
    """The layer and the part that a tensor's name tells, or None if it is no LoRA's."""
    match = _ENDS.match(name)
    if match is None:
        return None
    part = match["ab"] or _PARTS.get(match["way"]) or ALPHA
    layer = match["layer"].replace(".processor.", ".")
    return Entry(f"{layer}.0" if layer.endswith(".to_out") else layer, part)


def known_layers(wanted: Mapping[str, Tuple[int, ...]]) -> Dict[str, str]:
    """Every name that a linear layer of the UNet goes by → its published name, without `.weight`.

    Args:
        wanted: the network's parameters, published name → shape.
    """
    names: Dict[str, str] = {}
    for published, diffusers in diffusers_layers(wanted).items():
        bare = published[len(UNET_PREFIX) :]
        spellings = [prefix + bare for prefix in TOOLKIT_PREFIXES]
        spellings += [prefix + diffusers for prefix in DIFFUSERS_PREFIXES]
        spellings += [KOHYA_PREFIX + name.replace(".", "_") for name in (bare, diffusers)]
        names.update(dict.fromkeys(spellings, published))
    return names


def diffusers_layers(wanted: Mapping[str, Tuple[int, ...]]) -> Dict[str, str]:
    """Published name → diffusers name of every linear layer of the UNet, both without `.weight`."""
    places = diffusers_places(wanted)
    linear = [
        name
        for name, shape in wanted.items()
        if name.startswith(UNET_PREFIX) and name.endswith(WEIGHT) and len(shape) == 2
    ]
    return {name[: -len(WEIGHT)]: places[name].names[0][: -len(WEIGHT)] for name in linear}


def _refuse(path: Path, names: List[str], what: str) -> None:
    names = list(dict.fromkeys(names))
    if names:
        more = ", …" if len(names) > MAX_NAMES else ""
        raise UserError(f"--lora: {path} has {len(names)} {what}: {', '.join(names[:MAX_NAMES])}{more}")


def _parser() -> CommandParser:
    parser = CommandParser(prog="convert_lora.py", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--lora", required=True, help="the LoRA, safetensors")
    add("--out", required=True, help="the file to write, safetensors")
    add("--to", default=TOOLKIT, choices=[TOOLKIT, DIFFUSERS], help="toolkit: this toolkit's and ComfyUI's names")
    add("--config", default=str(DEFAULT_CONFIG), help="YAML of the network")
    return parser


if __name__ == "__main__":
    run_command(main)
