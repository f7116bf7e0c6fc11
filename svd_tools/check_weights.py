"""Says of weight files, on one page each, what they are and whether they can be used.

    python svd_tools/check_weights.py svd_xt.safetensors

Read from the header: the model, the layout, the types of the numbers, what is missing. Read from the data: the hash,
against those of the published files, and values that are not finite. Of a file that fits its model one small step of
the UNet is computed, and one frame decoded.
"""

import sys
from collections import Counter
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from gm.backend.memory import explain_out_of_memory, memory_limit
from gm.backend.runtime import RUNTIME_FLAGS, setup_runtime
from gm.config.command_parser import CommandParser
from gm.config.factory import model_config
from gm.errors import UserError, run_command
from gm.files import FilePath, open_input
from gm.weights.checkpoint import PROTOBUF_FIRST, file_sha256, open_checkpoint
from gm.weights.model_kind import KnownModel, architecture_in, architecture_of, find_model, in_project, known_models
from gm.weights.names import compare_names, expected_parameters, kind_of_names
from gm.weights.tensor_source import WEIGHT_TYPES, TensorSource
from svd_tools.conversion.lazy_tensor import count_not_finite

SMALL = 64  # pixels of the step's frames, up and across
SHOWN = 3  # names in a line


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Writes a page for each file, as soon as it is known.

    Raises:
        UserError: unusable flags; or, after all pages, the files that cannot be used.
    """
    args = _parser().parse_args(argv)
    broken = []
    for name in args.files:
        problems: List[str] = []
        for line in report(in_project(name), args, problems):
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
        broken += [name] if problems else []
    if broken:
        raise UserError(f"{len(broken)} of {len(args.files)} files cannot be used as they are: {', '.join(broken)}")


def report(path: Path, args: Any, problems: List[str]) -> Iterator[str]:
    """The lines of a file's page; what is wrong is added to `problems`."""

    def wrong(line: str) -> str:
        problems.append(line)
        return f"  ! {line}"

    yield f"{path}"
    try:
        source = open_checkpoint(path)
    except UserError as error:
        yield wrong(str(error))
        return
    with source:
        yield f"  size      {path.stat().st_size / 1e9:.2f} GB, {len(source.info)} tensors, {_types(source)}"
        model = None
        try:
            model = _model(source, args)
            yield f"  model     {model.name}: {model.path}"
        except UserError as error:
            yield wrong(str(error))
        kind = kind_of_names(source.info)
        yield f"  layout    {kind or _layout(path, source)}"
        digest = file_sha256(path)
        known = {digest: file for other in known_models() for file, digest in other.files.items() if digest}
        published = f", as published: {known[digest]}" if digest in known else ", of no file whose hash is known here"
        yield f"  sha256    {digest}{published}"
        yield from _values(source, wrong)
        if model is not None and not kind:
            try:
                compare_names(expected_parameters(model.path), source.info, what="it")
                yield "  tensors   all names and shapes are the model's"
                if args.step:
                    yield _step(path, model, args)
            except UserError as error:
                yield wrong(str(error))


def _model(source: TensorSource, args: Any) -> KnownModel:
    if args.config is None:
        return find_model(source, "--", args.num_frames)
    config = model_config(args.config)
    model = KnownModel(Path(args.config), config, architecture_in(config))
    if not model.architecture.fits(architecture_of(source.info)):
        raise UserError(f"--config: {args.config} describes another model than this file's")
    return model


def _types(source: TensorSource) -> str:
    counts = Counter(info.dtype for info in source.contents.info.values())
    return ", ".join(f"{dtype} {count}" for dtype, count in counts.most_common())


def _layout(path: Path, source: TensorSource) -> str:
    with open_input(path) as file:
        container = "MindSpore .ckpt" if file.read(1) == PROTOBUF_FIRST else "safetensors"
    scaled = ", fp8 with scales" if len(source.info) != len(source.contents.info) else ""
    return f"{container}, published names{scaled}"


def _values(source: TensorSource, wrong: Any) -> Iterator[str]:
    """Whether all numbers are finite; the data are read once, tensor by tensor."""
    bad: Dict[str, int] = {}
    for name, info in source.info.items():
        bad[name] = sum(count_not_finite(source.read_raw(name), info))
        source.release(name)
    bad = {name: count for name, count in bad.items() if count}
    odd = [name for name, info in source.info.items() if info.dtype not in WEIGHT_TYPES]
    if odd:
        yield wrong(f"{len(odd)} tensors hold no floating-point numbers: {', '.join(odd[:SHOWN])}")
    if bad:
        names = ", ".join(list(bad)[:SHOWN])
        yield wrong(f"{sum(bad.values())} values of {len(bad)} tensors are NaN or infinite: {names}")
    else:
        size = sum(info.num_bytes for info in source.info.values())
        yield f"  values    all finite ({size / 1e9:.2f} GB read)"


def _step(path: Path, model: KnownModel, args: Any) -> str:
    """One step of the UNet and one decoded frame, small. Raises a UserError if they give no finite numbers."""
    options = {"height": SMALL, "width": SMALL, "sampling_steps": 1, "offload": True}
    with memory_limit(), explain_out_of_memory("--step=false (leaves the step out)"):
        setup_runtime(args.mode, args.device_target)
        if model.architecture.temporal:
            from modules.pipeline import SVDPipeline

            grey = np.full((SMALL, SMALL, 3), 127, np.uint8)
            result = SVDPipeline(model.path, path, num_frames=1, **options)(grey, 0)
        else:
            from gm.text_to_image import StableDiffusionPipeline

            pipeline = StableDiffusionPipeline(model.path, path, **options)
            result = pipeline(pipeline.encode("a fox"), 0)
    return f"  one step  {SMALL}x{SMALL}, finite, mean {result.mean():.1f}, deviation {result.std():.1f} of 255"


def _parser() -> CommandParser:
    parser = CommandParser(prog="check_weights.py", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("files", nargs="+", help="weight files: safetensors or MindSpore .ckpt")
    add("--config", default=None, type=Optional[FilePath], help="YAML of the model; by default the one recognised")
    add("--num_frames", default=None, type=Optional[int], help="14 or 25: tells svd and svd_xt apart")
    add("--step", default=True, type=bool, help="compute one small step too")
    for name, flag in RUNTIME_FLAGS.items():
        add(f"--{name}", **flag)
    return parser


if __name__ == "__main__":
    run_command(main)
