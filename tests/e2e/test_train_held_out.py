"""svd_tiny learns one clip by heart, and the loss of another, which is held out, tells."""

import json

import pytest

import train
from data.metadata_csv import COLUMNS, write_rows
from tests.e2e.training import PROJECT, losses


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_held_out_loss_rises_when_a_clip_is_learnt_by_heart(tmp_path):
    rows = [("autumn_hills.mp4", 40, 180, "train"), ("mountain_path.mp4", 40, 180, "validation")]
    write_rows(tmp_path / "videos.csv", (*COLUMNS, "split"), rows)
    clips, validation = "--train.dataset.init_args.", "--train.validation."
    flags = [f"--config={PROJECT / 'configs/svd_tiny_train.yaml'}", f"--svd_config={PROJECT / 'configs/svd_tiny.yaml'}"]
    flags += [f"--train.pretrained={PROJECT / 'checkpoints/svd_tiny.safetensors'}", "--train.temporal_only=False"]
    flags += [f"{clips}data_dir={PROJECT / 'examples/clips'}", f"{clips}metadata={tmp_path / 'videos.csv'}"]
    flags += [f"{clips}frames=4", f"{clips}height=64", f"{clips}width=64", f"--train.output_dir={tmp_path / 'run'}"]
    flags += [f"--train.latent_cache.folder={tmp_path / 'encoded'}", "--train.latent_cache.windows=1"]
    flags += ["--train.latent_cache.draws=1", "--train.dataloader.batch_size=1", "--train.max_steps=150"]
    flags += ["--train.scheduler.lr=3e-3", f"{validation}every=50", f"{validation}sampling_steps=1"]
    train.main(flags)
    figures = [json.loads(line) for line in (tmp_path / "run" / "validation.jsonl").read_text().splitlines()]
    held_out = [line["validation/loss"] for line in figures]
    assert [line["step"] for line in figures] == [0, 50, 100, 150] and held_out[-1] > 1.1 * held_out[0]
    trained = list(losses(tmp_path / "run").values())
    assert sum(trained[-50:]) < 0.8 * sum(trained[:50])
