"""What is made of uploads: pictures, settings and a clip's motion."""

import numpy as np
import pytest
from PIL import Image

from data.motion import motion_bucket, video_motion
from data.video_reader import VideoReader
from data.video_writer import write_picture
from gm.errors import UserError
from svd_tools.web.reader import PREVIEW_SIDE, Uploads
from tests.data.synthetic_videos import pan, write_video

NAME = "<b>my</b> picture.jpg"


@pytest.fixture
def uploads():
    return Uploads(4)


def test_a_picture_and_its_copy_for_the_browser(uploads, tmp_path):
    path, copy = str(tmp_path / "upload.png"), str(tmp_path / "copy.jpg")
    Image.new("RGBA", (2000, 1500), (200, 30, 30, 255)).save(path)
    picture = uploads(("picture", path, NAME, copy), None)
    assert picture == (path, NAME, copy, 1500, 2000)
    with Image.open(copy) as image:
        assert image.size == (PREVIEW_SIDE, 768) and np.abs(np.array(image)[9, 9] - np.array([200, 30, 30])).max() < 5
    assert uploads(("settings", path), None) is None


@pytest.mark.parametrize("kind", ["large", "text", "cut"])
def test_pictures_that_cannot_be_used_are_named_as_they_were_uploaded(uploads, tmp_path, kind):
    path = tmp_path / "upload.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)).save(path)
    content = {"text": b"no picture", "cut": path.read_bytes()[:9000]}
    if kind == "large":
        Image.new("1", (2100, 2000)).save(path)
    else:
        path.write_bytes(content[kind])
    lines = {"large": "^it has more than 4 million pixels", "text": "it is not an image", "cut": "the file is damaged"}
    with pytest.raises(UserError, match=lines[kind]) as error:
        uploads(("picture", str(path), NAME, str(tmp_path / "copy.jpg")), None)
    assert str(tmp_path) not in str(error.value) and not (tmp_path / "copy.jpg").exists()


def test_settings_come_out_of_a_picture(uploads, tmp_path):
    write_picture(np.zeros((8, 8, 3), np.uint8), tmp_path / "made.png", {"seed": 3, "SVD": {"fps": 9}})
    assert uploads(("settings", str(tmp_path / "made.png")), None) == {"seed": 3, "SVD": {"fps": 9}}


def test_a_clip_s_motion_is_scored_and_drawn(uploads, tmp_path):
    path = tmp_path / "pan.mp4"
    write_video(path, pan(40, 90, 120, 1.5, seed=1))
    motion = uploads(("motion", str(path), "pan.mp4"), None)
    with VideoReader(path) as reader:
        expected = video_motion(reader).score()
    assert (motion.score, motion.bucket) == (expected, motion_bucket(expected)) and motion.bucket > 60
    assert 2 <= len(motion.drawings) <= 8 and all(url.startswith("data:image/jpeg;base64,") for url in motion.drawings)
    path.write_bytes(b"no clip")
    with pytest.raises(UserError, match="^pan of mine.mp4: "):
        uploads(("motion", str(path), "pan of mine.mp4"), None)
