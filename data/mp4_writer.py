"""MP4 files that browsers, phones and players take: H.264, 4:2:0, index in front, through imageio's bundled ffmpeg."""

import re
import subprocess
from typing import List

import imageio_ffmpeg
import numpy as np

from gm.errors import UserError
from gm.files import PathLike, atomic_file, open_input

CRF = 14  # x264's constant rate factor: 0 is lossless, 23 its default, 17-18 usually taken for visually lossless
BT709 = "bt709"

# RGB is full range; the video is limited range with BT.709's matrix, rounded rather than truncated.
TO_YUV = (
    f"scale=in_range=full:out_range=limited:out_color_matrix={BT709}:flags=bicubic+accurate_rnd+full_chroma_int,"
    "format=yuv420p,"
    f"setparams=range=limited:color_primaries={BT709}:color_trc={BT709}:colorspace={BT709}"
)
# What players are told of the above.
COLOUR_TAGS = ["-color_range", "tv", "-colorspace", BT709, "-color_primaries", BT709, "-color_trc", BT709]
NO_ROOM = "No space left on device"


def write_mp4(frames: np.ndarray, path: PathLike, fps: float, comment: str) -> None:
    """Encodes frames as H.264 (yuv420p, BT.709); the same frames give the same bytes again.

    4:2:0 chroma needs even sizes: an odd height or width gets its last row or column twice.

    Args:
        frames: (t, h, w, 3) uint8, RGB.
        path: the file to write; appears whole or not at all.
        fps: frames per second, above 0.
        comment: text for the file's comment tag.

    Raises:
        UserError: no ffmpeg, or the file cannot be written.
    """
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    with atomic_file(path) as temporary:
        arguments = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{frames.shape[2]}x{frames.shape[1]}"]
        arguments += ["-framerate", str(fps), "-i", "-", "-vf", TO_YUV, "-c:v", "libx264", "-preset", "slow"]
        arguments += ["-crf", str(CRF), *COLOUR_TAGS, "-movflags", "+faststart", "-metadata", f"comment={comment}"]
        arguments += ["-f", "mp4", "-y", f"file:{temporary}"]
        _run_ffmpeg(arguments, f"cannot write {path}", np.ascontiguousarray(frames).data)


def read_mp4_comment(path: PathLike) -> str:
    """The comment tag of an mp4 file, "" without one.

    Raises:
        OSError: see :func:`gm.files.open_input`.
        UserError: no ffmpeg, or the file cannot be read as a video.
    """
    open_input(path).close()
    output = _run_ffmpeg(["-f", "mov", "-i", f"file:{path}", "-f", "ffmetadata", "-"], f"cannot read {path}")
    # An ffmetadata value runs to the end of its line; a backslash escapes "=", ";", "#", itself and newline.
    match = re.search(r"^comment=((?:[^\\\n]|\\.)*)", output.decode("utf-8", "replace"), re.MULTILINE | re.DOTALL)
    return re.sub(r"\\(.)", r"\1", match.group(1), flags=re.DOTALL) if match else ""


def require_ffmpeg(flag: str) -> None:
    """Raises a UserError, which names the flag that asks for it, unless ffmpeg starts."""
    _run_ffmpeg(["-version"], flag)


def _run_ffmpeg(arguments: List[str], failure: str, frames: bytes = b"") -> bytes:
    """Runs ffmpeg with `frames` on its standard input; returns its standard output.

    Raises:
        UserError: `failure` and the reason that ffmpeg gives.
    """
    try:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-loglevel", "error", *arguments]
        result = subprocess.run(command, input=frames, capture_output=True, check=False)
    except (RuntimeError, OSError) as error:
        raise UserError(f"{failure}: ffmpeg does not start ({error}); reinstall imageio-ffmpeg") from error
    if result.returncode:
        raise UserError(f"{failure}: {_ffmpeg_reason(result)}")
    return result.stdout


def _ffmpeg_reason(result: "subprocess.CompletedProcess[bytes]") -> str:
    message = result.stderr.decode("utf-8", "replace")
    if NO_ROOM in message:
        return "no room left on the disk"
    lines = (
        re.sub(r"^\[.*? @ \w+\] ", "", message, flags=re.MULTILINE).strip().splitlines()
    )  # without its objects' names
    return lines[0] if lines else f"ffmpeg ended with code {result.returncode}"
