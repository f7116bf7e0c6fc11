"""Training clips per second: this project's reader against a naive one that decodes from the start with OpenCV.

    python benchmarks/data_loading.py --videos 6 --seconds 20 --repeats 3

The videos are H.264 as x264 writes it by default: a key frame every 250 frames at most. All contenders decode on one
thread per process, draw the same clips, and resize, crop and scale them in the same way; that they get the same frames
is checked first. The naive reader has no worker processes; per process, the first two rows compare.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Tuple

import cv2
import numpy as np

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))

from benchmarks import harness  # noqa: E402
from data.dataloader import make_dataloader  # noqa: E402
from data.metadata_csv import COLUMNS, write_rows  # noqa: E402
from data.transforms import channels_first, cover, crop  # noqa: E402
from data.video_dataset import ClipPlan, VideoDataset  # noqa: E402

PEER = "OpenCV from the start"
OURS = "by seeking"
LOADER = "by seeking, 2 workers"
FPS, FRAMES, STEP, HEIGHT, WIDTH = 30, 14, 4, 320, 576
SAME = 2.0  # mean absolute difference, of 255, that two decoders' rounding may make


class NaiveDataset(VideoDataset):
    """Reads each video frame by frame from its start to the clip's end."""

    def _load(self, plan: ClipPlan) -> Tuple[np.ndarray, float]:
        path = str(self._data_dir / self.rows[plan.video].path)
        capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        frames = []
        for number in range(plan.start + (FRAMES - 1) * STEP + 1):
            _, frame = capture.read()
            if number >= plan.start and (number - plan.start) % STEP == 0:
                frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
        fps = capture.get(cv2.CAP_PROP_FPS)
        capture.release()
        frames = crop(cover(np.stack(frames), HEIGHT, WIDTH), HEIGHT, WIDTH, plan.position)
        return channels_first(frames), fps


def open_dataset(folder: Path, kind: type = VideoDataset) -> VideoDataset:
    """The videos of a folder that :func:`make_videos` filled."""
    return kind(folder, folder / "videos.csv", FRAMES, STEP, HEIGHT, WIDTH)


def make_videos(folder: Path, count: int, seconds: int) -> None:
    """Writes moving pictures with some noise, and their CSV file."""
    import imageio_ffmpeg

    rows = []
    for i in range(count):
        picture = f"testsrc2=size=1280x720:rate={FPS},hue=h={30 * i},noise=alls=8:allf=t"
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", picture, "-t", str(seconds)]
        encoder = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-preset", "veryfast", str(folder / f"{i}.mp4")]
        subprocess.run([*command, *encoder], check=True)
        rows.append((f"{i}.mp4", seconds * FPS, 127))
    write_rows(folder / "videos.csv", COLUMNS, rows)


def check_same(folder: Path) -> None:
    """Raises RuntimeError unless both readers give the same clip."""
    first, second = (open_dataset(folder, kind).sample(0, 0) for kind in (VideoDataset, NaiveDataset))
    difference = 127.5 * float(np.abs(first["frames"] - second["frames"]).mean())
    if difference > SAME or first["start"] != second["start"]:
        raise RuntimeError(f"the readers' clips differ by {difference:.2f} of 255")


def measure(contender: str, folder: Path) -> None:
    """Reads two epochs and reports clips per second, the start of worker processes included."""
    cv2.setNumThreads(1)
    dataset = open_dataset(folder, NaiveDataset if contender == PEER else VideoDataset)
    start, start_cpu = time.perf_counter(), cpu_seconds()
    if contender == LOADER:
        count = sum(1 for _ in make_dataloader(dataset, batch_size=1, num_workers=2, epochs=2))
    else:
        count = sum(1 for epoch in range(2) for index in range(len(dataset)) if dataset.sample(epoch, index))
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - start_cpu
    harness.report_child({"clips_per_s": count / seconds, "cpu_s_per_clip": cpu / count})


def cpu_seconds() -> float:
    """Processor time of this process and of its worker processes that have ended: hardly changed by other load."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    """Makes the videos and compares the contenders, each in processes of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=6)
    parser.add_argument("--seconds", type=int, default=20, help="length of each video")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of separate processes")
    parser.add_argument("--out", type=Path, default=PROJECT / "benchmarks/results/data_loading.json")
    parser.add_argument("--child", choices=(OURS, LOADER, PEER), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        measure(args.child, args.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        make_videos(Path(folder), args.videos, args.seconds)
        check_same(Path(folder))
        commands = {name: [__file__, f"--child={name}", f"--folder={folder}"] for name in (OURS, PEER, LOADER)}
        results = harness.alternate(commands, args.repeats)
    clip = f"{FRAMES} frames, every {STEP}th, {HEIGHT}x{WIDTH}"
    question = {"what": "training clips", "videos": args.videos, "video": f"1280x720, {args.seconds} s", "clip": clip}
    harness.save(args.out, question, results, PEER)


if __name__ == "__main__":
    main()
