"""Measures a model on images that it has not seen.

    python svd_tools/evaluate.py --images photos/eval --output_dir evaluation

For every image it measures how well the autoencoder gives it back, as a still clip. It also makes clips at several
motion buckets and seeds, and measures how near their first frame is to the image, how far their colours drift, how fast
they move, and how much the temporal decoder flickers against the image decoder. The motion is compared with what a
bucket stands for, or with the training clips around it (--data_dir, --metadata).

The command writes report.json, contact_sheet.png and the clips; a run that was stopped goes on where it was.
"""

import hashlib
import json
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Dict, Iterator, List, Literal, NamedTuple, Optional, Sequence, Tuple, get_type_hints

import numpy as np
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.file_search import find_images
from data.image_reader import fit_image, read_image
from data.metadata_csv import read_metadata
from data.motion import motion_score
from data.video_metrics import colour_drift, contact_sheet, flicker, mean_flow, psnr, sharpness, static_areas
from data.video_reader import VideoError, VideoReader
from gm.config.command_parser import CommandParser
from gm.config.values import Range, show
from gm.errors import UserError, run_command, start_log
from gm.files import FilePath, atomic_file, make_output_dir, own_folder
from gm.weights.checkpoint import open_checkpoint, save_safetensors
from modules.options import VideoOptions

PROJECT = Path(__file__).resolve().parents[1]
DEFAULT_BUCKETS = [20, 65, 110, 155, 200]
SHEET_ROWS, SHEET_COLUMNS = 8, 8
TRAINING_CLIPS = 24  # measured for each motion bucket


def evaluate(args: Any) -> Dict[str, Any]:
    """Measures a model as the flags say.

    Returns:
        the report, as JSON can hold it: "summary" (:func:`summarise`) and "clips", the figures of each clip.

    Raises:
        UserError: a flag is out of its range, or a file cannot be read or written.
    """
    _check_args(args)
    paths = evenly(find_images(args.images, "--images"), args.limit)
    folder = make_output_dir(args.output_dir, "--output_dir")
    model = load_model(args)
    training_flow = measure_training_clips(args, model.pipeline.num_frames)
    images = {path.name: model.fit(read_image(path)) for path in paths}
    store = ClipStore(model, folder)
    reconstructions, clips, flickers = measure(model, images, args.buckets, args.seeds, store)
    summary = summarise(reconstructions, clips, flickers, training_flow)
    summary["seconds_per_clip"] = _mean(store.seconds) if store.seconds else None
    middle = sorted(args.buckets)[len(args.buckets) // 2]
    shown = [store.get(name, image, middle, 0).frames for name, image in list(images.items())[:SHEET_ROWS]]
    with atomic_file(folder / "contact_sheet.png") as temporary:
        Image.fromarray(contact_sheet(shown, SHEET_COLUMNS)).save(temporary)
    return {"summary": summary, "clips": clips}


class Clip(NamedTuple):
    """A generated clip and what it was decoded from."""

    frames: np.ndarray  # (t, h, w, 3) uint8
    latents: np.ndarray  # (t, 4, h/8, w/8) fp32, multiplied by the scale factor


class EvaluatedModel:
    """A pipeline with its weights and, beside it, the image autoencoder inside its conditioner, with its decoder."""

    def __init__(self, pipeline: Any) -> None:
        from modules.conditioning import in_image_autoencoder

        self.pipeline, self.engine = pipeline, pipeline.engine
        self._part = self.engine.conditioner.subset("image autoencoder", in_image_autoencoder)

    def fit(self, image: np.ndarray) -> np.ndarray:
        """An image of any size as the model sees it: (height, width, 3) uint8."""
        return fit_image(image, self.pipeline.height, self.pipeline.width, self.pipeline.crop_offset)

    def reconstruct(self, image: np.ndarray) -> np.ndarray:
        """Encodes a fitted image (mode of the posterior) and decodes it as a still clip of the model's length.

        Returns:
            (t, height, width, 3) uint8.
        """
        from mindspore import Tensor

        from modules.compatibility import Sgm, to_pixels

        with self._image_autoencoder() as autoencoder:
            latent = autoencoder.encode(Tensor(to_pixels(image))).asnumpy()
        latents = np.repeat(latent, self.pipeline.num_frames, axis=0) * np.float32(self.engine.scale_factor)
        return Sgm.to_frames(self.engine.decode(latents[None]))[0]

    def generate(self, image: np.ndarray, motion_bucket_id: int, seed: int) -> Clip:
        """Animates a fitted image."""
        self.pipeline.motion_bucket_id = motion_bucket_id
        kept: List[np.ndarray] = []
        decode = self.engine.decode

        def keep_and_decode(latents: np.ndarray, *args: Any, **kwargs: Any) -> np.ndarray:
            kept.append(latents)  # b t c h w
            return decode(latents, *args, **kwargs)

        self.engine.decode = keep_and_decode
        try:
            return Clip(self.pipeline(image, seed), kept[0][0])
        finally:
            del self.engine.decode

    def decode_one_by_one(self, latents: np.ndarray) -> np.ndarray:
        """Decodes each frame by itself with the image decoder.

        Args:
            latents: (t, 4, h, w), multiplied by the scale factor.

        Returns:
            (t, 8h, 8w, 3) uint8.
        """
        from mindspore import Tensor

        from modules.compatibility import Sgm

        scaled = latents / np.float32(self.engine.scale_factor)
        with self._image_autoencoder() as autoencoder:
            frames = [autoencoder.decode(Tensor(latent[None])).asnumpy()[0] for latent in scaled]
        return Sgm.to_frames(np.stack(frames)[None])[0]

    @contextmanager
    def _image_autoencoder(self) -> Iterator[Any]:
        from gm.backend.operators import inference
        from modules.conditioning import image_autoencoder

        with self._part as conditioner, inference():
            yield image_autoencoder(conditioner)


class ClipStore:
    """Generated clips on disk so that a long evaluation can be stopped; each way to make them has its own folder."""

    def __init__(self, model: Any, folder: Path) -> None:
        self.model = model
        settings = {key: value for key, value in model.pipeline.settings.items() if key != "motion_bucket_id"}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        self.folder = own_folder(folder / f"clips_{digest}")
        self.seconds: List[float] = []  # that each clip took which was made now

    def get(self, name: str, image: np.ndarray, bucket: int, seed: int) -> Clip:
        """A clip, made now or before."""
        fingerprint = hashlib.sha256(image.tobytes()).hexdigest()[:12]
        path = self.folder / f"{name}_{fingerprint}_bucket{bucket}_seed{seed}.safetensors"
        if path.exists():
            return read_clip(path)
        start = time.perf_counter()
        clip = self.model.generate(image, bucket, seed)
        self.seconds.append(time.perf_counter() - start)
        save_safetensors(path, clip._asdict())
        return clip


def read_clip(path: Path) -> Clip:
    """A clip that an earlier run kept. Raises a UserError for a file that holds none."""
    with open_checkpoint(path) as source:
        clip = Clip(*(np.array(source.read(name)) if name in source.info else np.empty(0) for name in Clip._fields))
    if (clip.frames.dtype, clip.frames.ndim, clip.frames.shape[:1]) != (np.uint8, 4, clip.latents.shape[:1]):
        raise UserError(f"--output_dir: {path} holds no clip; remove it")
    return clip


def measure(
    model: Any, images: Dict[str, np.ndarray], buckets: Sequence[int], seeds: int, store: ClipStore
) -> Tuple[List[float], List[Dict[str, Any]], List[Dict[str, float]]]:
    """Measures a model (an :class:`EvaluatedModel`) on fitted images.

    Returns:
        the PSNR of each reconstruction in dB; the figures of each clip; the flicker in static areas at the lowest
        bucket, where most stands still, of both decoders on the same latents.
    """
    stills = ((model.reconstruct(image), image) for image in images.values())
    reconstructions = [psnr(frames, np.broadcast_to(image, frames.shape)) for frames, image in stills]
    clips, flickers = [], []
    jobs = [(name, bucket, seed) for name in images for bucket in sorted(buckets) for seed in range(seeds)]
    for name, bucket, seed in tqdm(jobs, unit="clip", disable=None):
        frames, latents = store.get(name, images[name], bucket, seed)
        clip = {"image": name, "motion_bucket_id": bucket, "seed": seed}
        clip["first_frame_psnr"] = psnr(frames[0], images[name])  # dB
        clip["colour_drift"] = colour_drift(frames)  # levels (0..255)
        clip["flow"] = mean_flow(frames, model.pipeline.fps)  # shortest sides per second
        clip["sharpness"] = sharpness(frames[-1:], images[name])  # relative to the input's
        clips.append(clip)
        if bucket == min(buckets) and seed == 0:
            one_by_one = model.decode_one_by_one(latents)
            static = static_areas([frames, one_by_one])
            flicks = {"temporal": flicker(frames, static), "image": flicker(one_by_one, static)}
            flickers.append({**flicks, "static_share": float(static.mean())})
    return reconstructions, clips, flickers


def summarise(
    reconstructions: Sequence[float],
    clips: Sequence[Dict[str, Any]],
    flickers: Sequence[Dict[str, float]],
    training_flow: Dict[int, float],
) -> Dict[str, Any]:
    """Means over what :func:`measure` gives, as JSON can hold them; `training_flow` is {bucket: mean flow}."""
    buckets = sorted({clip["motion_bucket_id"] for clip in clips})

    def by_bucket(key: str) -> Dict[int, float]:
        return {b: _mean([clip[key] for clip in clips if clip["motion_bucket_id"] == b]) for b in buckets}

    return {
        "images": len({clip["image"] for clip in clips}),
        "seeds": len({clip["seed"] for clip in clips}),
        "reconstruction_psnr": _mean(reconstructions),
        **{key: _mean([clip[key] for clip in clips]) for key in ("first_frame_psnr", "colour_drift", "sharpness")},
        "colour_drift_by_bucket": by_bucket("colour_drift"),
        "flow": by_bucket("flow"),
        "training_flow": training_flow,
        "flicker_temporal_decoder": _mean([pair["temporal"] for pair in flickers]),
        "flicker_image_decoder": _mean([pair["image"] for pair in flickers]),
        "static_share": _mean([pair["static_share"] for pair in flickers]),
    }


def figures(summary: Dict[str, Any]) -> Dict[str, Tuple[str, str]]:
    """A summary as text: {key: (what the figure is, its value)}."""
    flow = list(summary["flow"].values())
    flickers = summary["flicker_temporal_decoder"], summary["flicker_image_decoder"]
    rows = {
        "reconstruction": ("autoencoder reconstruction, PSNR", f"{summary['reconstruction_psnr']:.2f} dB"),
        "first_frame": ("first frame against the input, PSNR", f"{summary['first_frame_psnr']:.2f} dB"),
        "colour_drift": ("colour drift over the clip", f"{summary['colour_drift']:.2f}/255"),
        "flow": (
            f"flow over motion buckets {', '.join(map(str, summary['flow']))}",
            ", ".join(f"{value:.4f}" for value in flow),
        ),
        "flow_ratio": ("flow, highest to lowest bucket", f"{flow[-1] / max(flow[0], 1e-9):.2f} times"),
        "flicker": ("flicker in static areas, temporal decoder (image decoder)", "{:.3f} ({:.3f})".format(*flickers)),
    }
    for bucket, trained in summary["training_flow"].items():
        value = f"{summary['flow'][bucket]:.4f} ({trained:.4f})"
        rows[f"flow_{bucket}"] = (f"flow at bucket {bucket} (in training)", value)
    return rows


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of one length as lines of aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "".join("  ".join(map(str.ljust, row, widths)).rstrip() + "\n" for row in rows)


def write_report(args: Any, report: Dict[str, Any], rows: Sequence[Sequence[str]]) -> None:
    """Writes report.json into the folder of the flags, and the rows to the standard output."""
    path = Path(args.output_dir) / "report.json"
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(report, indent=1), encoding="utf-8")
    sys.stdout.write(table(rows))
    summary = report["summary"]
    sys.stdout.write(f"{summary['images']} images, {summary['seeds']} seeds; details in {path}\n")


def evenly(items: Sequence[Any], count: int) -> List[Any]:
    """At most `count` items, evenly spread over all of them; 0 is all."""
    if not count or count >= len(items):
        return list(items)
    return [items[index] for index in np.linspace(0, len(items) - 1, count).round().astype(int)]


def build_parser() -> CommandParser:
    """The command's flags."""
    parser = CommandParser(prog="evaluate.py", description=__doc__)
    add, hints = parser.add_argument, get_type_hints(VideoOptions, include_extras=True)
    add("--config", type=FilePath, default=str(PROJECT / "configs/svd_tiny.yaml"), help="YAML file of the model")
    add("--checkpoint", type=FilePath, default=str(PROJECT / "checkpoints/svd_tiny.safetensors"), help="its weights")
    add("--images", type=FilePath, default=str(PROJECT / "examples"), help="an image or a folder of images")
    limit = Annotated[int, Range(0, 10**5)]
    add("--limit", type=limit, default=16, help="images at most, evenly spread over the folder; 0: all")
    add("--seeds", type=Annotated[int, Range(1, 1000)], default=3, help="clips for each image and motion bucket")
    bucket = hints["motion_bucket_id"]
    add("--buckets", type=List[bucket], default=DEFAULT_BUCKETS, help="motion buckets, such as [10,130,250]")
    add("--fps", type=hints["fps"], default=7, help="that the clips are made for")
    add("--num_frames", type=hints["num_frames"], default=None, help="of the clips; by default the model's")
    add("--sampling_steps", type=hints["sampling_steps"], default=0, help="0: the YAML's")
    add("--mode", type=Literal[0, 1], default=0, help="0: graph (compiles first, for many clips); 1: PyNative")
    add("--data_dir", type=FilePath, default="", help="folder of training clips to compare the motion with")
    add("--metadata", type=FilePath, default="", help="their CSV: path,length,motion_bucket_id")
    add("--output_dir", type=FilePath, default="evaluation", help="folder for the report")
    return parser


def _check_args(args: Any) -> None:
    """Raises a UserError for flags that do not go together."""
    if len(args.buckets) < 2:
        raise UserError(f"--buckets: {show(args.buckets)} cannot be used; name two or more motion buckets")
    if bool(args.data_dir) != bool(args.metadata):
        raise UserError("--data_dir, --metadata: name both, or none")


def load_model(args: Any) -> Any:
    """The model of the flags."""
    from gm.backend.runtime import GRAPH_MODE, setup_runtime
    from modules.pipeline import SVDPipeline

    setup_runtime(args.mode)
    options = {"num_frames": args.num_frames, "fps": args.fps, "sampling_steps": args.sampling_steps}
    try:
        pipeline = SVDPipeline(args.config, args.checkpoint, **options, fuse_kernels=args.mode == GRAPH_MODE)
    except UserError as error:
        raise UserError(str(error).replace("--SVD.", "--")) from error  # the flags' names in this command
    return EvaluatedModel(pipeline)


def measure_training_clips(args: Any, num_frames: int) -> Dict[int, float]:
    """{bucket: mean flow of the training clips around it}; where none are named, what the bucket stands for."""
    if not args.data_dir:
        return {bucket: motion_score(bucket) for bucket in sorted(args.buckets)}
    rows = read_metadata(args.data_dir, args.metadata, "--data_dir", "--metadata")

    def flow(row: Any) -> float:
        try:
            with VideoReader(Path(args.data_dir) / row.path) as reader:
                return mean_flow(reader.read_clip(0, min(reader.num_frames, num_frames)), reader.fps)
        except VideoError as error:
            raise UserError(f"--metadata: {error}") from error

    def nearest(bucket: int) -> List[Any]:
        return sorted(rows, key=lambda row: abs(row.motion_bucket_id - bucket))[:TRAINING_CLIPS]

    return {bucket: _mean(list(map(flow, nearest(bucket)))) for bucket in sorted(args.buckets)}


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Runs the command; see the module's docstring."""
    start_log()
    args = build_parser().parse_args(argv)
    report = evaluate(args)
    write_report(args, report, [("figure", "value"), *figures(report["summary"]).values()])


def _mean(values: Sequence[float]) -> float:
    """The mean of the numbers among `values`; NaN where there is none."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


if __name__ == "__main__":
    run_command(main)
