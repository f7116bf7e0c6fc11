"""From a model and held-out pictures to the figures that say whether it works, and whether they are good enough."""

from typing import Any, Callable, Dict, List, NamedTuple, Sequence, Tuple

import numpy as np

from svd_tools.video_metrics import (
    colour_drift,
    flicker,
    mean_flow,
    psnr,
    rises_strictly,
    sharpness,
    static_areas,
)

MIN_RECONSTRUCTION_PSNR = 24.0  # dB
MIN_FIRST_FRAME_PSNR = 20.0  # dB
MAX_COLOUR_DRIFT = 5.0  # levels of 255
MIN_FLOW_RATIO = 3.0  # highest to lowest motion bucket
MAX_FLOW_FACTOR = 2.0  # between generated and training clips of one bucket


class ClipFigures(NamedTuple):
    """What is measured on one generated clip."""

    image: str
    motion_bucket_id: int
    seed: int
    first_frame_psnr: float  # dB, first generated frame against the input
    colour_drift: float  # levels (0..255)
    flow: float  # shortest sides per second
    sharpness: float  # last frame's fine detail relative to the input's


class FlickerFigures(NamedTuple):
    """Mean difference from frame to frame in static areas, in levels, of two decoders on the same latents."""

    temporal: float
    image: float
    static_share: float  # of the picture


class Verdict(NamedTuple):
    """One line of the report."""

    figure: str
    value: str
    wanted: str
    met: bool


def measure_clip(frames: np.ndarray, image: np.ndarray, name: str, bucket: int, seed: int, fps: float) -> ClipFigures:
    """Measures a generated clip, (t, h, w, 3) uint8, against its input picture, (h, w, 3) uint8."""
    return ClipFigures(
        name,
        bucket,
        seed,
        psnr(frames[0], image),
        colour_drift(frames),
        mean_flow(frames, fps),
        sharpness(frames[-1:], image),
    )


def measure_flicker(temporal: np.ndarray, one_by_one: np.ndarray) -> FlickerFigures:
    """Compares two decodings of the same latents, each (t, h, w, 3) uint8, where both stand still."""
    static = static_areas([temporal, one_by_one])
    return FlickerFigures(flicker(temporal, static), flicker(one_by_one, static), float(static.mean()))


def summarise(
    reconstructions: Sequence[float],
    clips: Sequence[ClipFigures],
    flickers: Sequence[FlickerFigures],
    training_flow: Dict[int, float],
) -> Dict[str, Any]:
    """Means over all clips, as JSON can hold them.

    Args:
        reconstructions: PSNR of each picture, dB.
        clips: of every picture, bucket and seed.
        flickers: of some clips.
        training_flow: {bucket: mean flow of training clips}.
    """
    buckets = sorted({clip.motion_bucket_id for clip in clips})
    flow = {bucket: _mean([clip.flow for clip in clips if clip.motion_bucket_id == bucket]) for bucket in buckets}
    return {
        "images": len({clip.image for clip in clips}),
        "seeds": len({clip.seed for clip in clips}),
        "reconstruction_psnr": _mean(reconstructions),
        "first_frame_psnr": _mean([clip.first_frame_psnr for clip in clips]),
        "colour_drift": _mean([clip.colour_drift for clip in clips]),
        "colour_drift_by_bucket": {
            bucket: _mean([clip.colour_drift for clip in clips if clip.motion_bucket_id == bucket])
            for bucket in buckets
        },
        "flow": flow,
        "training_flow": training_flow,
        "sharpness": _mean([clip.sharpness for clip in clips]),
        "flicker_temporal_decoder": _mean([pair.temporal for pair in flickers]),
        "flicker_image_decoder": _mean([pair.image for pair in flickers]),
        "static_share": _mean([pair.static_share for pair in flickers]),
    }


def judge(summary: Dict[str, Any]) -> List[Verdict]:
    """Holds a summary against what is wanted of svd_tiny."""
    flow = list(summary["flow"].values())
    ratio = flow[-1] / max(flow[0], 1e-9)
    temporal, image = summary["flicker_temporal_decoder"], summary["flicker_image_decoder"]
    verdicts = [
        _at_least("autoencoder reconstruction, PSNR", summary["reconstruction_psnr"], MIN_RECONSTRUCTION_PSNR, "dB"),
        _at_least("first frame against the input, PSNR", summary["first_frame_psnr"], MIN_FIRST_FRAME_PSNR, "dB"),
        Verdict(
            "colour drift over the clip",
            f"{summary['colour_drift']:.2f}/255",
            f"below {MAX_COLOUR_DRIFT:g}/255",
            summary["colour_drift"] < MAX_COLOUR_DRIFT,
        ),
        Verdict(
            "flow over motion buckets " + ", ".join(map(str, summary["flow"])),
            ", ".join(f"{value:.4f}" for value in flow),
            "rises strictly",
            rises_strictly(flow),
        ),
        _at_least("flow, highest to lowest bucket", ratio, MIN_FLOW_RATIO, "times"),
        Verdict(
            "flicker in static areas, temporal decoder (image decoder)",
            f"{temporal:.3f} ({image:.3f})",
            "less than the image decoder",
            temporal < image,
        ),
    ]
    return verdicts + _judge_training_flow(summary["flow"], summary["training_flow"])


def training_flow(
    clips: Sequence[Any], buckets: Sequence[int], read: Callable[[Any], Tuple[np.ndarray, float]], count: int
) -> Dict[int, float]:
    """Mean flow of the training clips around each motion bucket.

    Args:
        clips: rows with a `motion_bucket_id`.
        buckets: the motion buckets wanted.
        read: gives a clip's frames, (t, h, w, 3) uint8, and their rate.
        count: how many clips nearest to each bucket are measured.
    """
    flows = {}
    for bucket in buckets:
        nearest = sorted(clips, key=lambda clip: abs(clip.motion_bucket_id - bucket))[:count]
        flows[bucket] = _mean([mean_flow(*read(clip)) for clip in nearest])
    return flows


def _judge_training_flow(generated: Dict[int, float], trained: Dict[int, float]) -> List[Verdict]:
    verdicts = []
    for bucket, wanted in trained.items():
        factor = max(generated[bucket], wanted) / max(min(generated[bucket], wanted), 1e-9)
        verdicts.append(
            Verdict(
                f"flow at bucket {bucket} (in training)",
                f"{generated[bucket]:.4f} ({wanted:.4f})",
                f"within a factor of {MAX_FLOW_FACTOR:g}",
                factor <= MAX_FLOW_FACTOR,
            )
        )
    return verdicts


def _at_least(figure: str, value: float, least: float, unit: str) -> Verdict:
    return Verdict(figure, f"{value:.2f} {unit}", f"at least {least:g} {unit}", value >= least)


def _mean(values: Sequence[float]) -> float:
    """The mean of the numbers among `values`; NaN where there is none."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
