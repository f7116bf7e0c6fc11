"""Converts a LoRA between this toolkit's file and those of diffusers, PEFT and kohya's scripts.

    python svd_tools/convert_lora.py --lora=camera.safetensors --out=lora.safetensors
    python svd_tools/convert_lora.py --lora=lora.safetensors --to=diffusers --out=pytorch_lora_weights.safetensors

In diffusers' file alpha is multiplied into B, because programs that read it take alpha to be the rank.
"""

import sys
from pathlib import Path
from typing import Dict, Mapping, Optional, Sequence, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from gm.config.command_parser import CommandParser
from gm.errors import UserError, run_command
from gm.files import FilePath, make_output_dir
from gm.weights.checkpoint import save_safetensors
from gm.weights.lora_file import LowRank, read_lora, write_lora
from gm.weights.lora_layouts import DIFFUSERS_PREFIXES, adapted_places, layer_of, weight_of
from gm.weights.names import expected_parameters
from svd_tools.conversion.targets import new_file

DEFAULT_CONFIG = Path(__file__).resolve().parents[1] / "configs" / "svd.yaml"
TOOLKIT, DIFFUSERS = "toolkit", "diffusers"
SUFFIX = ".safetensors"


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Converts as the flags say and writes one line for the file that came out of it.

    Raises:
        UserError: unusable flags, a file that is no LoRA of this network, no room.
    """
    args = _parser().parse_args(sys.argv[1:] if argv is None else argv)
    out = new_file(args.out, [SUFFIX])
    wanted = expected_parameters(args.config)
    try:
        _, layers, metadata, note = read_lora(args.lora, wanted, args.alpha)
    except UserError as error:
        raise UserError(f"--lora: {error}") from error
    make_output_dir(out.parent, "--out")
    if args.to == DIFFUSERS:
        save_safetensors(out, diffusers_tensors(layers, wanted), metadata)
    else:
        write_lora(out, layers, metadata)
    ranks = sorted({layer.rank for layer in layers.values()})
    also = f"; {note}" if note else ""
    sys.stdout.write(f"wrote {out}: {len(layers)} layers of rank {', '.join(map(str, ranks))}{also}\n")


def diffusers_tensors(
    layers: Mapping[str, LowRank], wanted: Mapping[str, Tuple[int, ...]]
) -> Dict[str, np.ndarray]:
    """A and B of every layer under diffusers' names, alpha multiplied into B.

    Args:
        layers: by their published names.
        wanted: the network's parameters, published name → shape.
    """
    tensors, places = {}, adapted_places(wanted)
    for published, layer in layers.items():
        place, shape = places[weight_of(published)], wanted[weight_of(published)]
        b = (layer.alpha / layer.rank * layer.b.astype(np.float64)).astype(np.float32)
        for name, rows in zip(place.names, np.split(b, len(place.names))):
            stem = DIFFUSERS_PREFIXES[place.component][0] + layer_of(name)
            tensors[f"{stem}.lora_A.weight"] = layer.a.astype(np.float32).reshape(-1, *shape[1:])
            tensors[f"{stem}.lora_B.weight"] = rows.reshape(*rows.shape, *(1,) * (len(shape) - 2))
    return tensors


def _parser() -> CommandParser:
    parser = CommandParser(prog="convert_lora.py", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--lora", type=FilePath, required=True, help="the LoRA, safetensors, or a folder of PEFT's")
    add("--alpha", default=None, type=Optional[float], help="of a LoRA whose file keeps none; by default the rank")
    add("--out", type=FilePath, required=True, help="the file to write, safetensors")
    add("--to", default=TOOLKIT, choices=[TOOLKIT, DIFFUSERS], help="toolkit: this toolkit's and ComfyUI's names")
    add("--config", type=FilePath, default=str(DEFAULT_CONFIG), help="YAML of the network")
    return parser


if __name__ == "__main__":
    run_command(main)
