"""Merges a LoRA into a checkpoint: every adapted weight W becomes W + scale·(alpha/rank)·B A.

    python svd_tools/merge_lora.py --checkpoint=svd.safetensors --lora=lora.safetensors --out=merged.safetensors

The result has the checkpoint's names, and its types unless --dtype says otherwise; merged weights are computed in fp64.
Tensors are read from the mapped file and written one at a time.
"""

import sys
from pathlib import Path
from typing import Optional, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gm.config.command_parser import CommandParser
from gm.errors import run_command
from gm.files import FilePath, make_output_dir, require_free_space
from gm.options import LoRAScale
from gm.weights.checkpoint import file_sha256, open_checkpoint
from gm.weights.lora_file import LoRA, MergedSource, read_lora
from gm.weights.tensor_source import Raw, TensorInfo, TensorSource
from svd_tools.conversion.lazy_tensor import DTYPES, LazyTensor, Tensors, encode, from_source
from svd_tools.conversion.targets import ALLOW_NONFINITE, KEEP, new_file, single_file_target, write_target

SUFFIXES = (".safetensors", ".ckpt")


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Merges as the flags say and writes one line for the file that came out of it.

    Raises:
        UserError: unusable flags, files that cannot be read, a LoRA of another model, no room.
    """
    args = _parser().parse_args(sys.argv[1:] if argv is None else argv)
    out = new_file(args.out, SUFFIXES)
    with open_checkpoint(args.checkpoint) as source:
        lora = read_lora(args.lora, {name: info.shape for name, info in source.info.items()})
        target = single_file_target(out, merged_tensors(source, lora, args.scale), args.dtype, leftovers=True)
        make_output_dir(out.parent, "--out")
        require_free_space(out.parent, target.num_bytes, str(out))
        told = {"lora": Path(args.lora).name, "lora_sha256": file_sha256(args.lora), "lora_scale": str(args.scale)}
        metadata = {**source.metadata, "format": "pt", **told}
        digests = write_target(target, metadata, dict, sys.stderr.isatty(), args.allow_nonfinite)
    sys.stdout.write(
        f"wrote {out}: {len(lora.layers)} of {len(source.info)} tensors merged with scale {args.scale:g}, "
        f"{target.num_bytes / 1e9:.2f} GB, sha256 of the tensors {digests['']}\n"
    )


def merged_tensors(source: TensorSource, lora: LoRA, scale: float) -> Tensors:
    """All tensors of a checkpoint, in their stored types, those that the LoRA adapts merged when they are read.

    Raises:
        UserError: the LoRA is of another model.
    """
    tensors = from_source(source, source.path.name)
    merged = MergedSource(source, lora, scale)
    for name in merged.deltas:
        tensors[name] = _merged(merged, name, tensors[name].info)
    return tensors


def _merged(merged: MergedSource, name: str, info: TensorInfo) -> LazyTensor:
    def load() -> Raw:
        return encode(merged.read(name), info.dtype)

    return LazyTensor(info, f"{merged.path.name}: {name} with the LoRA", load, lambda: merged.release(name))


def _parser() -> CommandParser:
    parser = CommandParser(prog="merge_lora.py", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--checkpoint", type=FilePath, required=True, help="the weights of the LoRA's training, safetensors or .ckpt")
    add("--lora", type=FilePath, required=True, help="the LoRA that train.py or svd_tools/convert_lora.py wrote")
    add("--out", type=FilePath, required=True, help="to write: .safetensors, or .ckpt in the reference toolkit's names")
    add("--scale", default=1.0, type=LoRAScale, help="how strongly: 1 as it was trained, 0 not at all, -1 the opposite")
    add(ALLOW_NONFINITE, default=False, type=bool, help="write NaN and infinite values too, with a warning")
    add("--dtype", default=KEEP, choices=[KEEP, *DTYPES], help="type of the numbers; keep: as they are")
    return parser


if __name__ == "__main__":
    run_command(main)
