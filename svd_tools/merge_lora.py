"""Merges a LoRA into a checkpoint: every adapted weight W becomes W + scale·(alpha/rank)·B A.

    python svd_tools/merge_lora.py --checkpoint=svd.safetensors --lora=lora.safetensors --out=merged.safetensors

The result has the checkpoint's names, and its types unless --dtype says otherwise; merged weights are computed in fp64
and rounded to that type. Tensors are read from the mapped file and written one at a time.
"""

import logging
import sys
from pathlib import Path
from typing import Dict, Optional, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from gm.config.command_parser import CommandParser
from gm.errors import UserError, run_command
from gm.files import FilePath, make_output_dir, require_free_space
from gm.options import LoRAScale
from gm.weights.checkpoint import file_sha256, open_checkpoint
from gm.weights.lora_file import LoRA, MergedSource, read_lora
from gm.weights.tensor_source import Raw, TensorInfo, TensorSource, decode
from svd_tools.conversion.lazy_tensor import DTYPES, LazyTensor, Tensors, encode, from_source, writable
from svd_tools.conversion.targets import ALLOW_NONFINITE, KEEP, new_file, single_file_target, write_target

LOSS = 0.05  # share of a tensor's change that may be lost without a word
logger = logging.getLogger(__name__)
SUFFIXES = (".safetensors", ".ckpt")


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Merges as the flags say and writes one line for the file that came out of it.

    Raises:
        UserError: unusable flags, files that cannot be read, a LoRA of another model, no room.
    """
    args = _parser().parse_args(sys.argv[1:] if argv is None else argv)
    out = new_file(args.out, SUFFIXES)
    with open_checkpoint(args.checkpoint) as source:
        lora = read_lora(args.lora, {name: info.shape for name, info in source.info.items()}, args.alpha)
        lost: Dict[str, float] = {}
        tensors = merged_tensors(source, lora, args.scale, args.dtype, lost)
        target = single_file_target(out, tensors, args.dtype, leftovers=True)
        make_output_dir(out.parent, "--out")
        require_free_space(out.parent, target.num_bytes, str(out))
        told = {"lora": Path(args.lora).name, "lora_sha256": file_sha256(args.lora), "lora_scale": str(args.scale)}
        metadata = {**source.metadata, "format": "pt", **told}
        digests = write_target(target, metadata, dict, sys.stderr.isatty(), args.allow_nonfinite)
    sys.stdout.write(
        f"wrote {out}: {len(lora.layers)} of {len(source.info)} tensors merged with scale {args.scale:g}, "
        f"{target.num_bytes / 1e9:.2f} GB, sha256 of the tensors {digests['']}{f'; {lora.note}' if lora.note else ''}\n"
    )
    if lost and max(lost.values()) > LOSS:
        worst = max(lost, key=lost.get)
        count = sum(loss > LOSS for loss in lost.values())
        logger.warning(
            "rounding swallows up to %.0f %% of what the LoRA changes (%s), more than %.0f %% in %d of %d tensors; "
            "--dtype=fp32 keeps it", 100 * lost[worst], worst, 100 * LOSS, count, len(lost),
        )  # fmt: skip


def merged_tensors(
    source: TensorSource, lora: LoRA, scale: float, dtype: str = KEEP, lost: Optional[Dict[str, float]] = None
) -> Tensors:
    """All tensors of a checkpoint, in their stored types, those that the LoRA adapts merged when they are read.

    Args:
        dtype: of the merged ones; `KEEP` is the stored one.
        lost: gets, for each merged tensor that is read, the share of its change that rounding to this type loses.

    Raises:
        UserError: the LoRA is of another model, or a stored type cannot be written.
    """
    tensors = from_source(source, source.path.name)
    merged = MergedSource(source, lora, scale)
    for name in merged.deltas:
        info = TensorInfo(tensors[name].info.dtype if dtype == KEEP else DTYPES[dtype], tensors[name].info.shape)
        if writable(info.dtype) != info.dtype:
            raise UserError(f"--dtype: a merged {name} cannot be stored as {info.dtype}, as it is; name another type")
        tensors[name] = _merged(merged, name, info, {} if lost is None else lost)
    return tensors


def _merged(merged: MergedSource, name: str, info: TensorInfo, lost: Dict[str, float]) -> LazyTensor:
    def load() -> Raw:
        values = merged.read(name)
        raw = encode(values, info.dtype)
        change = values - TensorSource.read(merged, name).astype(np.float32)
        error = decode(raw, info, name).astype(np.float32) - values
        lost[name] = float(np.linalg.norm(error) / max(np.linalg.norm(change), np.finfo(np.float32).tiny))
        return raw

    return LazyTensor(info, f"{merged.path.name}: {name} with the LoRA", load, lambda: merged.release(name))


def _parser() -> CommandParser:
    parser = CommandParser(prog="merge_lora.py", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--checkpoint", type=FilePath, required=True, help="the weights of the LoRA's training, safetensors or .ckpt")
    add("--lora", type=FilePath, required=True, help="the LoRA: a file of any known kind, or a folder of PEFT's")
    add("--alpha", default=None, type=Optional[float], help="of a LoRA whose file keeps none; by default the rank")
    add("--out", type=FilePath, required=True, help="to write: .safetensors, or .ckpt in the reference toolkit's names")
    add("--scale", default=1.0, type=LoRAScale, help="how strongly: 1 as it was trained, 0 not at all, -1 the opposite")
    add(ALLOW_NONFINITE, default=False, type=bool, help="write NaN and infinite values too, with a warning")
    add("--dtype", default=KEEP, choices=[KEEP, *DTYPES], help="type of the numbers; keep: as they are")
    return parser


if __name__ == "__main__":
    run_command(main)
