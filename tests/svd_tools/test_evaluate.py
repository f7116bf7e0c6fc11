"""The evaluation, on models whose figures are known: a camera that moves as told, and models that fail in one way."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from data.motion_bucket import motion_score
from data.video_writer import write_video
from gm.errors import UserError
from svd_tools import evaluate
from svd_tools.evaluated_model import Clip

HEIGHT, WIDTH, FRAMES = 64, 96, 6
FPS = 7
RADIUS = 0.484  # mean distance from the centre, in shortest sides


class CameraModel:
    """Zooms into the picture, the faster the higher the bucket; its latents are its frames."""

    def __init__(self, shift=0, backwards=False):
        self.calls, self.shift, self.backwards = 0, shift, backwards
        self.pipeline = SimpleNamespace(fps=FPS, num_frames=FRAMES, settings={"name": "camera", "motion_bucket_id": 0})

    def fit(self, image):
        return cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)

    def reconstruct(self, image):
        return np.clip(image.astype(int) + 5, 0, 255).astype(np.uint8)

    def generate(self, image, motion_bucket_id, seed):
        self.calls += 1
        rate = motion_score(220 - motion_bucket_id if self.backwards else motion_bucket_id) / FPS / RADIUS
        rng = np.random.default_rng(seed)
        frames = []
        for frame in range(FRAMES):
            centre = ((WIDTH - 1) / 2, (HEIGHT - 1) / 2)
            matrix = cv2.getRotationMatrix2D(centre, 0, np.exp(rate * frame))
            moved = cv2.warpAffine(image, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC).astype(float)
            frames.append(moved + rng.normal(0, 0.7, moved.shape) + self.shift * frame)
        frames = np.clip(frames, 0, 255).astype(np.uint8)
        return Clip(frames, frames)

    def decode_one_by_one(self, latents):
        noise = np.random.default_rng(9).normal(0, 3, latents.shape)
        return np.clip(latents + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(3):
        noise = np.random.default_rng(seed).normal(0, 1, (128, 192, 3)).astype(np.float32)
        texture = cv2.GaussianBlur(noise, (0, 0), 5)
        Image.fromarray(np.clip(texture * (45 / texture.std()) + 128, 0, 255).astype(np.uint8)).save(
            folder / f"{seed}.png"
        )
    return folder


def run(monkeypatch, pictures, out, model, *flags):
    monkeypatch.setattr(evaluate, "load_model", lambda args: model)
    evaluate.main([f"--images={pictures}", f"--output_dir={out}", "--seeds=2", *flags])
    return json.loads((out / "report.json").read_text())


def met(report):
    return {verdict["figure"].split(",")[0]: verdict["met"] for verdict in report["verdicts"]}


def test_a_good_model_meets_all_and_leaves_a_report(monkeypatch, pictures, tmp_path, capsys):
    report = run(monkeypatch, pictures, tmp_path, CameraModel())
    assert all(met(report).values())
    assert len(report["clips"]) == 3 * 2 * 5
    summary = report["summary"]
    assert (summary["images"], summary["seeds"]) == (3, 2)
    assert summary["reconstruction_psnr"] == pytest.approx(20 * np.log10(255 / 5), abs=0.3)
    assert summary["first_frame_psnr"] > 40
    flow = list(summary["flow"].values())
    assert flow[4] / flow[2] == pytest.approx(motion_score(200) / motion_score(110), rel=0.15)
    assert summary["flicker_temporal_decoder"] < summary["flicker_image_decoder"]
    sheet = Image.open(tmp_path / "contact_sheet.png")
    assert sheet.size == (8 * (WIDTH + 2) - 2, 3 * (HEIGHT + 2) - 2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["figure", "value", "wanted", "met"]
    assert sum(line.endswith("yes") for line in lines) == 11


def test_each_failure_is_told(monkeypatch, pictures, tmp_path):
    drifting = met(run(monkeypatch, pictures, tmp_path / "a", CameraModel(shift=4)))
    assert not drifting["colour drift over the clip"] and drifting["flow"]
    backwards = met(run(monkeypatch, pictures, tmp_path / "b", CameraModel(backwards=True)))
    assert not backwards["flow over motion buckets 20"] and not backwards["flow"]


def test_a_stopped_evaluation_goes_on(monkeypatch, pictures, tmp_path):
    first = CameraModel()
    report = run(monkeypatch, pictures, tmp_path, first, "--buckets=[20,200]")
    assert first.calls == 3 * 2 * 2
    again = CameraModel()
    assert run(monkeypatch, pictures, tmp_path, again, "--buckets=[20,200]")["clips"] == report["clips"]
    assert again.calls == 0
    other = CameraModel()
    other.pipeline.settings["name"] = "another checkpoint"
    run(monkeypatch, pictures, tmp_path, other, "--buckets=[20,200]")
    assert other.calls == 3 * 2 * 2


def test_motion_is_compared_with_the_training_clips(monkeypatch, pictures, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    model = CameraModel()
    picture = model.fit(np.asarray(Image.open(pictures / "0.png")))
    rows = ["path,length,motion_bucket_id"]
    for bucket, made_with in ((100, 100), (200, 110)):  # what the CSV calls 200 is far slower
        write_video(model.generate(picture, made_with, 0).frames, data / f"{bucket}.mp4", 7, {}, "mp4")
        rows += [f"{bucket}.mp4,{FRAMES},{bucket}"]
    (data / "m.csv").write_text("\n".join(rows))
    monkeypatch.setattr(evaluate, "TRAINING_CLIPS", 1)
    flags = [f"--data_dir={data}", f"--metadata={data / 'm.csv'}", "--buckets=[100,200]"]
    verdicts = met(run(monkeypatch, pictures, tmp_path / "out", model, *flags))
    assert verdicts["flow at bucket 100 (in training)"]
    assert not verdicts["flow at bucket 200 (in training)"]


def test_limit_takes_pictures_from_all_over_the_folder():
    assert evaluate.evenly(list(range(100)), 5) == [0, 25, 50, 74, 99]
    assert evaluate.evenly([1, 2, 3], 0) == evaluate.evenly([1, 2, 3], 9) == [1, 2, 3]


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--seeds=0", "--seeds: 0 is too small"),
        ("--buckets=[10]", "--buckets: [10] cannot be used"),
        ("--buckets=[10,300]", "--buckets: [10, 300] cannot be used"),
        ("--data_dir=x", "--data_dir, --metadata: name both"),
        ("--images=nowhere", "--images: nowhere does not exist"),
    ],
)
def test_mistakes_are_named(tmp_path, flag, message):
    with pytest.raises(UserError) as error:
        evaluate.main([f"--output_dir={tmp_path}", flag])
    assert message in str(error.value)
