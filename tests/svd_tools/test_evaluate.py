"""The evaluation, on models whose figures are known: a camera that moves as told."""

import json

import numpy as np
import pytest
from PIL import Image

from data.motion import motion_score
from gm.errors import UserError
from svd_tools import evaluate
from tests.svd_tools.camera_model import HEIGHT, WIDTH, CameraModel, write_pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def run(monkeypatch, pictures, out, model, *flags):
    monkeypatch.setattr(evaluate, "load_model", lambda args: model)
    evaluate.main([f"--images={pictures}", f"--output_dir={out}", "--seeds=2", *flags])
    return json.loads((out / "report.json").read_text())


def test_a_model_is_measured_and_leaves_a_report(monkeypatch, pictures, tmp_path, capsys):
    report = run(monkeypatch, pictures, tmp_path, CameraModel())
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
    assert lines[0].split() == ["figure", "value"]
    assert len(lines) == 1 + 11 + 1 and lines[-1].startswith("3 images, 2 seeds")


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


def test_limit_takes_pictures_from_all_over_the_folder():
    assert evaluate.evenly(list(range(100)), 5) == [0, 25, 50, 74, 99]
    assert evaluate.evenly([1, 2, 3], 0) == evaluate.evenly([1, 2, 3], 9) == [1, 2, 3]


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--seeds=0", "--seeds: 0 cannot be used; expected a whole number from 1 to"),
        ("--buckets=[10]", "--buckets: [10] cannot be used"),
        ("--buckets=[10,300]", "--buckets: [10,300] cannot be used"),
        ("--data_dir=x", "--data_dir, --metadata: name both"),
        ("--images=nowhere", "--images: nowhere does not exist"),
    ],
)
def test_mistakes_are_named(tmp_path, flag, message):
    with pytest.raises(UserError) as error:
        evaluate.main([f"--output_dir={tmp_path}", flag])
    assert message in str(error.value)
