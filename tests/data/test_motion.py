import math
from fractions import Fraction

import cv2
import numpy as np
import pytest

from data.motion import FULL_SCORE, clip_score, motion_bucket, motion_score, video_score
from data.video_reader import VideoError, VideoReader
from tests.data.synthetic_videos import pan, write_video


def score_file(path):
    with VideoReader(path) as reader:
        return video_score(reader)


def test_buckets_rise_from_0_to_255():
    scores = np.concatenate([[0.0], np.logspace(-6, 1, 3000)])
    buckets = [motion_bucket(score) for score in scores]
    assert buckets == sorted(buckets)
    assert set(buckets) == set(range(256))
    assert all(isinstance(bucket, int) for bucket in buckets)


def test_bucket_and_score_are_inverse():
    assert [motion_bucket(motion_score(bucket)) for bucket in range(256)] == list(range(256))
    assert motion_score(0) == 0.0 and motion_score(255) == pytest.approx(FULL_SCORE)
    assert motion_bucket(math.inf) == 255


def test_the_mapping_that_models_are_trained_with_stays():
    known = {0.0: 0, 0.001: 6, 0.01: 45, 0.05: 116, 0.0605: 127, 0.1: 156, 0.2: 197, 0.5: 255}
    assert {score: motion_bucket(score) for score in known} == known


@pytest.mark.parametrize("score", [-0.1, math.nan])
def test_a_score_that_is_none(score):
    with pytest.raises(ValueError, match="0 or more"):
        motion_bucket(score)


@pytest.mark.parametrize("bucket", [-1, 256, math.nan])
def test_a_bucket_that_is_none(bucket):
    with pytest.raises(ValueError, match=r"0\.\.255"):
        motion_score(bucket)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("speed", [0.004, 0.02, 0.08, 0.25])
def test_a_pan_has_its_speed(speed, seed):
    """`speed` in shortest sides per second, along a 3-4-5 diagonal."""
    height, seconds = 180, 0.5
    pixels = speed * height * seconds
    frames = pan(4, height, 320, 0.8 * pixels, 0.6 * pixels, seed)
    assert clip_score(frames, seconds) == pytest.approx(speed, rel=0.05)


def test_a_faster_pan_still_scores_as_fast():
    frames = pan(3, 180, 320, 0.35 * 180)
    assert motion_bucket(clip_score(frames, 0.5)) > motion_bucket(0.1)


def test_the_rate_and_the_length_do_not_matter(tmp_path):
    speed, height = 0.1, 96
    scores = []
    for fps, num_frames in ((10, 25), (30, 75), (30, 13)):
        path = write_video(tmp_path / f"{fps}-{num_frames}.mp4", pan(num_frames, height, 160, speed * height / fps),
                           fps=Fraction(fps))
        scores.append(score_file(path))
    assert scores == pytest.approx([speed] * 3, rel=0.1)


def test_the_size_does_not_matter(tmp_path):
    large = pan(26, 360, 640, 1.8)
    buckets = []
    for height, width in ((360, 640), (180, 320), (90, 160)):
        frames = [cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in large]
        buckets.append(motion_bucket(score_file(write_video(tmp_path / f"{height}.mp4", frames))))
    assert max(buckets) - min(buckets) <= 3
    upright = [np.ascontiguousarray(np.rot90(frame)) for frame in large]
    assert abs(motion_bucket(score_file(write_video(tmp_path / "upright.mp4", upright))) - buckets[0]) <= 3


def test_a_still_video_scores_next_to_nothing_and_noise_little(tmp_path):
    still = pan(1, 240, 426, 0.0) * 30
    assert motion_bucket(score_file(write_video(tmp_path / "still.mp4", still))) <= 1
    rng = np.random.default_rng(0)
    noisy = [np.clip(frame + rng.normal(0, 6, frame.shape), 0, 255).astype(np.uint8) for frame in still]
    assert motion_bucket(score_file(write_video(tmp_path / "noisy.mp4", noisy))) <= 6
    black = [np.zeros((96, 160, 3), np.uint8)] * 20
    assert motion_bucket(score_file(write_video(tmp_path / "black.mp4", black))) == 0


def test_half_of_the_picture_moving_scores_about_half():
    moving, frozen = pan(3, 180, 320, 9.0), pan(1, 180, 320, 0.0, seed=3)[0]
    frames = [np.concatenate([frame[:, :160], frozen[:, 160:]], axis=1) for frame in moving]
    assert clip_score(frames, 0.5) / clip_score(moving, 0.5) == pytest.approx(0.5, abs=0.12)


def test_one_frame_has_no_motion(tmp_path):
    with pytest.raises(VideoError, match=r"one\.mp4: has one frame only"):
        score_file(write_video(tmp_path / "one.mp4", pan(1, 96, 160, 0.0)))
