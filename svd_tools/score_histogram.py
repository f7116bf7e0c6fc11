"""A picture of how motion is distributed over a set of videos."""

from typing import Sequence

import numpy as np

from data.motion import MAX_BUCKET, motion_bucket
from gm.files import PathLike, atomic_file

BUCKETS_PER_BAR = 8
SCORE_TICKS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # shortest sides per second
SIZE_INCHES, DOTS_PER_INCH = (8.0, 4.5), 120


def draw_histogram(scores: Sequence[float], num_dropped: int, path: PathLike) -> None:
    """Draws the scores' histogram, those of the `num_dropped` stillest videos in grey, as a PNG file.

    The axis below is the motion bucket, the one above the score: one is an even scale of the other.

    Raises:
        ImportError: matplotlib is not installed.
        UserError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # optional; without pyplot's global state
    from matplotlib.figure import Figure

    buckets = [motion_bucket(score) for score in sorted(scores)]
    dropped, kept = buckets[:num_dropped], buckets[num_dropped:]
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.hist(
        [kept, dropped],
        bins=np.arange(0, MAX_BUCKET + 2, BUCKETS_PER_BAR),
        stacked=True,
        color=["tab:blue", "darkgrey"],
        label=[f"{len(kept)} videos", f"{len(dropped)} left out as static"],
    )
    median = float(np.median(kept))
    axes.axvline(median, color="tab:orange", label=f"median {median:.0f}")
    axes.set(xlabel="motion_bucket_id", ylabel="videos", xlim=(0, MAX_BUCKET + 1))
    above = axes.secondary_xaxis("top")
    above.set_xticks([motion_bucket(score) for score in SCORE_TICKS], [f"{score:g}" for score in SCORE_TICKS])
    above.set_xlabel("motion score, shortest sides per second")
    axes.legend()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=DOTS_PER_INCH, format="png")
