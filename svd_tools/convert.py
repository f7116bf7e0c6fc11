"""Converts Stable Video Diffusion weights between all the layouts that they come in.

    python svd_tools/convert.py --pt_weights_file=svd.safetensors --config=configs/svd.yaml --out_dir=weights

From: the published single file (safetensors or a PyTorch pickle), a diffusers folder, one part alone over a --base,
the reference toolkit's `.ckpt`, a checkpoint of this toolkit. To: a `.ckpt` with the reference toolkit's names, a
single safetensors file, a diffusers folder. Tensors are read from the mapped file and written one at a time.
"""

import json
import os
import signal
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, Optional, Sequence, Tuple

from jsonargparse import Namespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gm.config.command_parser import CommandParser
from gm.config.factory import load_config
from gm.errors import UserError, run_command
from gm.files import FilePath, make_output_dir, require_free_space
from gm.weights.names import expected_parameters
from svd_tools.conversion.diffusers_config import diffusers_texts
from svd_tools.conversion.diffusers_layout import assemble
from svd_tools.conversion.lazy_tensor import DTYPES, Tensors
from svd_tools.conversion.targets import (
    ALLOW_NONFINITE,
    KEEP,
    Target,
    diffusers_target,
    single_file_target,
    write_target,
)
from svd_tools.conversion.weight_files import FileHashes, Weights, open_weights

DEFAULT_CONFIG = Path(__file__).resolve().parents[1] / "configs" / "svd.yaml"
CKPT, SAFETENSORS, DIFFUSERS = "ckpt", "safetensors", "diffusers"
KEEP_LEFTOVERS, DROP_LEFTOVERS = "keep", "drop"
_UNKNOWN_HASH = "0" * 64  # stands in the header until the source is read through


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Converts as the flags say and writes one line for each file that came out of it."""
    args = _parser().parse_args(sys.argv[1:] if argv is None else argv)
    with _signals_as_errors():
        weights = open_weights(Path(args.pt_weights_file), args.variant)
        base = open_weights(Path(args.base)) if args.base else None
        wanted = expected_parameters(args.config)
        tensors = assemble(weights, wanted, base, args.drop_extra, configured_sigmas(args.config))
        target = _target(args, weights.name, tensors, wanted)
        if args.dry_run:
            sys.stdout.writelines(_description(target))
        else:
            _prepare(target, args.out_dir)
            _write(target, weights, base, args.allow_nonfinite)


def _parser() -> CommandParser:
    parser = CommandParser(prog="convert.py", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--pt_weights_file", "--source", type=FilePath, required=True,
        help="the weights: a safetensors file, a PyTorch pickle (.ckpt, .pt, .bin), a MindSpore .ckpt, a diffusers "
             "folder, or a UNet alone (with --base)",
    )  # fmt: skip
    add("--out_dir", type=FilePath, required=True, help="folder in which the file or the diffusers folder is made")
    add("--config", type=FilePath, default=str(DEFAULT_CONFIG), help="YAML of the network")
    add("--to", default=CKPT, choices=[CKPT, SAFETENSORS, DIFFUSERS], help="layout of the output")
    add("--dtype", default=KEEP, choices=[KEEP, *DTYPES], help="type of the numbers; keep: as they are")
    add("--base", default=None, type=Optional[FilePath], help="checkpoint that supplies what is missing")
    add("--variant", default=None, type=Optional[str],
        help="which files of a diffusers folder to take, such as fp16; by default those without a variant if there",
    )  # fmt: skip
    add("--leftovers", default=KEEP_LEFTOVERS, choices=[KEEP_LEFTOVERS, DROP_LEFTOVERS],
        help="the tensors that no program reads (CLIP's text tower, the conditioner's decoder). drop leaves them out: "
             "ComfyUI and PyTorch still load such a file, this toolkit converts it but does not run it. In a diffusers "
             "folder, keep puts all that the layout lacks into leftovers.safetensors, so that the way back is exact",
    )  # fmt: skip
    add("--drop_extra", default=False, type=bool, help="leave out tensors that the network lacks")
    add(ALLOW_NONFINITE, default=False, type=bool, help="write NaN and infinite values too, with a warning")
    add("--dry_run", default=False, type=bool, help="only print what would be mapped to what")
    return parser


def configured_sigmas(config: str) -> Optional[Tuple[float, float]]:
    """The lowest and the highest noise level that a YAML file gives, None if it does not say both."""
    node: Any = load_config(config)["model"]
    for key in ("sampler_config", "discretization_config"):
        node = (node.get("params") or {}).get(key) or {}
    sigmas = tuple((node.get("params") or {}).get(name) for name in ("sigma_min", "sigma_max"))
    return None if None in sigmas else sigmas


def _target(args: Namespace, name: str, tensors: Tensors, wanted: Mapping[str, Tuple[int, ...]]) -> Target:
    stem = name if args.dtype == KEEP else f"{name}_{args.dtype}"
    leftovers = args.leftovers == KEEP_LEFTOVERS
    if args.to == DIFFUSERS:
        texts = diffusers_texts(args.config, wanted)
        return diffusers_target(Path(args.out_dir) / stem, tensors, args.dtype, leftovers, texts)
    return single_file_target(Path(args.out_dir) / f"{stem}.{args.to}", tensors, args.dtype, leftovers)


def _prepare(target: Target, out_dir: str) -> None:
    """Checks that the target can be written and makes the folder for it."""
    make_output_dir(out_dir, "--out_dir")
    if os.path.lexists(target.path) and not (target.path.is_dir() and not any(target.path.iterdir())):
        raise UserError(f"--out_dir: {target.path} exists already; remove it or name another folder")
    require_free_space(out_dir, target.num_bytes, str(target.path))


def _write(target: Target, weights: Weights, base: Optional[Weights], allow_nonfinite: bool) -> None:
    files = _files(weights, base)
    hashes = FileHashes(list(files))
    source = {"source": weights.path.name, "source_sha256": _hash_text(dict.fromkeys(files.values(), _UNKNOWN_HASH))}
    metadata = {**weights.metadata, "format": "pt", **source}

    def late_metadata() -> Dict[str, str]:
        return {"source_sha256": _hash_text({files[path]: value for path, value in hashes.wait().items()})}

    written = write_target(target, metadata, late_metadata, sys.stderr.isatty(), allow_nonfinite)
    sys.stdout.writelines(f"read {path}: sha256 {digest}\n" for path, digest in hashes.wait().items())
    for name, digest in written.items():
        tensors = target.files[name]
        size = sum(tensor.info.num_bytes for tensor in tensors.values())
        what = f"{len(tensors)} tensors, {size / 1e9:.2f} GB, sha256 of the tensors {digest}"
        sys.stdout.write(f"wrote {target.path / name}: {what}\n")


def _files(weights: Weights, base: Optional[Weights]) -> Dict[Path, str]:
    """Every file that is read → its name in the metadata."""
    names: Dict[Path, str] = {}
    for label, source in (("", weights), ("--base ", base)):
        if source is not None and source.path.is_dir():
            names.update({file: f"{label}{source.path.name}/{file.relative_to(source.path)}" for file in source.files})
        elif source is not None:
            names[source.path] = label + source.path.name
    return names


def _hash_text(hashes: Mapping[str, str]) -> str:
    """The hash of the only file, or a JSON object of all."""
    return next(iter(hashes.values())) if len(hashes) == 1 else json.dumps(dict(hashes))


def _description(target: Target) -> Iterator[str]:
    for file, tensors in target.files.items():
        for name, tensor in tensors.items():
            where = f"{file}: {name}" if file else name
            yield f"{where} {tensor.info.dtype} {tensor.info.shape} <- {tensor.origin}\n"
    count = sum(len(tensors) for tensors in target.files.values())
    yield f"would write {target.path}: {count} tensors, {target.num_bytes / 1e9:.2f} GB\n"


@contextmanager
def _signals_as_errors() -> Iterator[None]:
    """Turns Ctrl-C and a request to end into a UserError, so that what is half-written is removed on the way out."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]

    def interrupt(number: int, frame: object) -> None:
        for other in signals:
            signal.signal(other, signal.SIG_IGN)  # a second one must not stop the cleaning
        raise UserError(f"interrupted ({signal.Signals(number).name}); nothing was written")

    before = {number: signal.signal(number, interrupt) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    run_command(main)
