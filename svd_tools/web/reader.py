"""What visitors upload is opened here, in a process of its own: pictures, clips, and the settings in videos."""

import base64
import io
import math
from typing import Any, Dict, List, NamedTuple, Optional

import numpy as np
from PIL import Image

from data.image_reader import explained, open_image, to_rgb
from data.motion import SAMPLE_SECONDS, clip_flow, motion_bucket, video_motion
from data.video_reader import VideoError, VideoReader
from data.video_writer import read_metadata
from gm.errors import UserError
from gm.files import atomic_file, open_input
from svd_tools.web.process import Reporter

PREVIEW_SIDE = 1024  # pixels of a picture's longer side in the browser
MOST_DRAWN = 8  # frames with their flow
DRAWN_SIDE = 320  # pixels of their longer side
ARROW_SECONDS = 0.5  # of motion that an arrow is long
ARROW_COLOUR, ARROW_EDGE = (255, 214, 0), (0, 0, 0)


class Picture(NamedTuple):
    """An uploaded picture, and its copy for the browser."""

    path: str
    name: str
    copy: str
    height: int
    width: int


class Motion(NamedTuple):
    """A clip's motion: shortest sides per second, the motion bucket, and frames with the flow as arrows (data URLs)."""

    score: float
    bucket: int
    drawings: List[str]


class Uploads:
    """Reads uploaded files.

    Args:
        max_megapixels: of a picture, or of a clip's frame.
    """

    def __init__(self, max_megapixels: int) -> None:
        self.max_megapixels = max_megapixels

    def __call__(self, request: Any, report: Reporter) -> Any:
        """request: (the name of a method below, its arguments)."""
        name, *arguments = request
        return getattr(self, name)(*arguments)

    def picture(self, path: str, name: str, copy: str) -> Picture:
        """A picture to animate.

        Args:
            path: the file.
            name: that it was uploaded under.
            copy: the JPEG file to write for the browser.

        Raises:
            UserError: it is none, or too large.
        """
        try:
            with explained(path), open_input(path) as file, open_image(file) as opened:
                self._require_size(opened.height, opened.width)
                image = to_rgb(opened, path)
        except UserError as error:
            raise UserError(str(error).replace(path, name)) from error
        small = Image.fromarray(image)
        small.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
        with atomic_file(copy) as temporary:
            small.save(temporary, "jpeg", quality=90)
        return Picture(path, name, copy, *image.shape[:2])

    def settings(self, path: str) -> Optional[Dict[str, Any]]:
        """The settings in a file of this toolkit's, or None."""
        try:
            return read_metadata(path)
        except UserError:
            return None

    def motion(self, path: str, name: str) -> Motion:
        """How much a clip moves."""
        try:
            with VideoReader(path) as reader:
                self._require_size(*reader.size)
                score = video_motion(reader).score()
                last = (reader.num_frames - 1) / reader.fps
                seconds = min(SAMPLE_SECONDS, last)
                starts = np.unique(np.linspace(0, last - seconds, min(MOST_DRAWN, math.ceil(last / seconds))))
                pairs = [reader.read([start, start + seconds]) for start in starts]
        except VideoError as error:
            raise UserError(str(error).replace(path, name)) from error
        flows = [next(clip_flow(pair, seconds)) for pair in pairs]
        return Motion(score, motion_bucket(score), [as_url(draw_flow(*flow)) for flow in flows])

    def _require_size(self, height: int, width: int) -> None:
        if height * width > self.max_megapixels * 10**6:
            raise UserError(f"it has more than {self.max_megapixels} million pixels, the most that can be uploaded")


def draw_flow(frame: np.ndarray, flow: np.ndarray) -> Image.Image:
    """A frame, made smaller, with its flow as arrows.

    Args:
        frame: (h, w, 3) uint8.
        flow: (h', w', 2), shortest sides per second, right and down.
    """
    import cv2

    small = Image.fromarray(frame)
    small.thumbnail((DRAWN_SIDE, DRAWN_SIDE))
    canvas = np.array(small)
    height, width = canvas.shape[:2]
    rows, columns = flow.shape[:2]
    for row in range(0, rows, 2):
        for column in range(0, columns, 2):
            start = np.array([(column + 0.5) * width / columns, (row + 0.5) * height / rows])
            end = start + flow[row, column] * ARROW_SECONDS * min(height, width)
            points = [tuple(int(value) for value in point.round()) for point in (start, end)]
            for colour, thickness in ((ARROW_EDGE, 3), (ARROW_COLOUR, 1)):
                cv2.arrowedLine(canvas, *points, colour, thickness, cv2.LINE_AA, tipLength=0.3)
    return Image.fromarray(canvas)


def as_url(image: Image.Image) -> str:
    """A picture as a data URL."""
    file = io.BytesIO()
    image.save(file, "jpeg", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
