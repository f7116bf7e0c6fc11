"""svd_tiny/evaluate.py with a real model: small, of random weights."""

import json

import numpy as np
from PIL import Image

from svd_tiny import evaluate


def test_evaluation_of_a_random_model(tiny_checkpoint, tmp_path, capsys):
    picture = np.random.default_rng(0).integers(0, 256, (90, 160, 3)).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    flags = [f"--checkpoint={tiny_checkpoint}", f"--images={tmp_path / 'picture.png'}", f"--output_dir={tmp_path}"]
    evaluate.main([*flags, "--seeds=1", "--buckets=[10,250]", "--num_frames=2", "--mode=1", "--sampling_steps=1"])
    report = json.loads((tmp_path / "report.json").read_text())
    assert 0 < report["summary"]["reconstruction_psnr"] < 24
    assert {check["met"] for check in report["checks"]} >= {False}
    assert [clip["motion_bucket_id"] for clip in report["clips"]] == [10, 250]
    assert "1 images, 1 seeds" in capsys.readouterr().out
