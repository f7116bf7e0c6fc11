"""Small real video files for tests: frame i carries i in its pixels, and pans of known speed."""

import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Optional, Sequence

import av
import cv2
import imageio_ffmpeg
import numpy as np

NUM_BITS = 8  # frames are numbered 0..255
MILLISECOND = Fraction(1, 1000)


def numbered_frame(number: int, height: int = 96, width: int = 160) -> np.ndarray:
    """uint8 (h, w, 3): the bits of `number` as light and dark blocks on top, a red lower left quarter."""
    frame = np.full((height, width, 3), 40, np.uint8)
    for bit in range(NUM_BITS):
        frame[: height // 2, bit * width // NUM_BITS : (bit + 1) * width // NUM_BITS] = 220 if number >> bit & 1 else 30
    frame[height // 2 :, : width // 2] = (200, 60, 60)
    return frame


def frame_number(frame: np.ndarray) -> int:
    """The number that :func:`numbered_frame` wrote, read back after lossy coding and resizing."""
    height, width = frame.shape[:2]
    number = 0
    for bit in range(NUM_BITS):
        left, right = bit * width // NUM_BITS, (bit + 1) * width // NUM_BITS
        block = frame[height // 8 : 3 * height // 8, left + (right - left) // 4 : right - (right - left) // 4]
        number |= int(block.mean() > 128) << bit
    return number


def write_video(
    path: Path,
    frames: Sequence[np.ndarray],
    fps: Fraction = Fraction(25),
    times_ms: Optional[Sequence[int]] = None,
    codec: str = "libx264",
    options: Optional[dict] = None,
    container_options: Optional[dict] = None,
    pixel_format: str = "yuv420p",
) -> Path:
    """Encodes frames at a constant rate, or each at its own time in milliseconds; key frames every 12, 2 B-frames."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixel_format
        stream.options = options or {"g": "12", "bf": "2", "crf": "18", "preset": "veryfast"}
        if times_ms is not None:
            stream.codec_context.time_base = MILLISECOND
        for i, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts = i if times_ms is None else times_ms[i]
            frame.time_base = 1 / fps if times_ms is None else MILLISECOND
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_numbered(path: Path, num_frames: int = 60, height: int = 96, width: int = 160, **kwargs) -> Path:
    """A video whose frame i shows the number i."""
    return write_video(path, [numbered_frame(i, height, width) for i in range(num_frames)], **kwargs)


def write_cut_off(path: Path, share: float = 0.6) -> Path:
    """A numbered video whose index comes first and whose data stop after `share` of the file."""
    write_numbered(path, container_options={"movflags": "faststart"})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def remux(source: Path, path: Path, *input_options: str) -> Path:
    """Copies a video's stream with the ffmpeg command's input options (rotation, cut)."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *input_options, "-i", str(source)]
    subprocess.run([*command, "-c", "copy", str(path)], check=True)
    return path


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 (h, w): smooth noise with detail at several scales relative to the height, as natural pictures have."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width), np.float32)
    for cells in (4, 8, 16, 32):
        grid = rng.normal(size=(cells, cells * width // height)).astype(np.float32)
        image += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) / np.sqrt(cells)
    image = (image - image.min()) / (image.max() - image.min())
    return (255 * image).astype(np.uint8)


def pan(num_frames: int, height: int, width: int, step_x: float, step_y: float = 0.0, seed: int = 0) -> list:
    """Frames, uint8 (h, w, 3), that slide over a texture by (step_x, step_y) pixels from frame to frame."""
    reach_x, reach_y = int(np.ceil(abs(step_x) * num_frames)) + 2, int(np.ceil(abs(step_y) * num_frames)) + 2
    scene = texture(height + reach_y, width + reach_x, seed)
    frames = []
    for i in range(num_frames):
        centre = (abs(step_x) * i + (width - 1) / 2, abs(step_y) * i + (height - 1) / 2)
        frames.append(np.repeat(cv2.getRectSubPix(scene, (width, height), centre)[..., None], 3, axis=2))
    return frames
