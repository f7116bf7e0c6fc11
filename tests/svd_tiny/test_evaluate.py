"""The checks of svd_tiny, on models whose figures are known: a good one, and some that fail in one way."""

import json

import numpy as np
import pytest
from PIL import Image

from data.video_writer import write_video
from svd_tiny.evaluate import check, main
from svd_tools import evaluate
from tests.svd_tools.camera_model import FRAMES, CameraModel, write_pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def run(monkeypatch, pictures, out, model, *flags):
    monkeypatch.setattr(evaluate, "load_model", lambda args: model)
    main([f"--images={pictures}", f"--output_dir={out}", "--seeds=2", *flags])
    return json.loads((out / "report.json").read_text())


def met(report):
    return {check["figure"].split(",")[0]: check["met"] for check in report["checks"]}


def test_a_good_model_meets_all(monkeypatch, pictures, tmp_path, capsys):
    report = run(monkeypatch, pictures, tmp_path, CameraModel())
    assert all(met(report).values())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["figure", "value", "wanted", "met"]
    assert sum(line.endswith("yes") for line in lines) == 11


def test_each_failure_is_told(monkeypatch, pictures, tmp_path):
    drifting = met(run(monkeypatch, pictures, tmp_path / "a", CameraModel(shift=4)))
    assert not drifting["colour drift over the clip"] and drifting["flow"]
    backwards = met(run(monkeypatch, pictures, tmp_path / "b", CameraModel(backwards=True)))
    assert not backwards["flow over motion buckets 20"] and not backwards["flow"]


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
    checks = met(run(monkeypatch, pictures, tmp_path / "out", model, *flags))
    assert checks["flow at bucket 100 (in training)"]
    assert not checks["flow at bucket 200 (in training)"]


@pytest.mark.parametrize("flow, met", [([1, 2, 3], True), ([1, 2, 2], False), ([1, 3, 2], False)])
def test_flow_must_rise_strictly(flow, met):
    summary = dict.fromkeys(["reconstruction_psnr", "first_frame_psnr", "colour_drift"], 30.0)
    summary.update(flicker_temporal_decoder=1.0, flicker_image_decoder=2.0, training_flow={})
    assert check({**summary, "flow": dict(zip((10, 20, 30), flow))})["flow"].met == met
