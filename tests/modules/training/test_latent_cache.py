import logging
import os
import shutil
from collections import namedtuple
from functools import cache
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from data.dataloader import make_dataloader
from data.metadata_csv import COLUMNS, write_rows
from data.video_dataset import VideoDataset
from gm.config.factory import instantiate, load_config
from gm.errors import UserError
from gm.weights.checkpoint import open_checkpoint, save_safetensors
from modules.training.latent_cache import LatentCache
from tests.data.synthetic_videos import write_numbered

CONFIG = Path(__file__).with_name("nano.yaml")
VIDEOS = ("a.mp4", "b.mp4", "c.mp4")
FRAMES, SIZE, LATENT = 3, 32, 4
COND_AUG = (-3.0, 0.5)


def weight(rng, name, shape):
    """A random tensor of the size that keeps signals as strong as they are."""
    values = rng.standard_normal(shape).astype(np.float32)
    if len(shape) > 1:
        return values / np.float32(np.sqrt(np.prod(shape[1:])))
    return values * np.float32(0.1) + np.float32(name.endswith(".weight"))


@cache
def engine_of(path):
    engine = instantiate(load_config(CONFIG)["model"])
    engine.attach(path)
    return engine


@pytest.fixture(scope="module")
def weights():
    rng = np.random.default_rng(0)
    shapes = instantiate(load_config(CONFIG)["model"]).parameter_shapes()
    return {name: weight(rng, name, shape) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, weights):
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_safetensors(path, weights)
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for index, name in enumerate(VIDEOS):
        write_numbered(folder / name, 20 + index, height=64, width=96)
    return folder


@pytest.fixture
def data_dir(tmp_path, videos):
    """A copy that a test may change."""
    return Path(shutil.copytree(videos, tmp_path / "videos"))


def make_cache(folder, data_dir, path, rows=None, cond_aug=COND_AUG, windows=1, draws=2, **options):
    rows = [(name, 20, 10 * index) for index, name in enumerate(VIDEOS)] if rows is None else rows
    write_rows(folder / "videos.csv", COLUMNS, rows)
    args = {"data_dir": data_dir, "metadata": folder / "videos.csv", "frames": FRAMES, "step": 2}
    args.update({"height": SIZE, "width": SIZE, **options})
    return LatentCache(folder / "cache", args, engine_of(path), cond_aug, windows, draws)


@pytest.fixture
def make(tmp_path, data_dir, checkpoint):
    """A cache in the test's folder; options of the data set, the cache or the checkpoint may be set."""
    return lambda path=checkpoint, **options: make_cache(tmp_path, data_dir, path, **options)


@pytest.fixture(scope="module")
def built(tmp_path_factory, videos, checkpoint):
    """A cache that is complete."""
    folder = tmp_path_factory.mktemp("built")
    make_cache(folder, videos, checkpoint).build(chunk_size=3)
    return folder / "cache"


@pytest.fixture
def make_built(make, built, tmp_path):
    """As `make`; with the options it has by itself the cache is complete."""
    shutil.copytree(built, tmp_path / "cache")
    return make


def files(cache):
    return {path: path.stat().st_mtime_ns for path in cache.folder.rglob("*.safetensors")}


def encode(engine, key, pictures):
    with engine.conditioner as conditioner:
        out = conditioner.embed({key: pictures})
    return next(iter(out.values()))


@pytest.mark.parametrize("compiled", [False, True])
def test_samples_are_what_training_without_a_cache_encodes(make, checkpoint, monkeypatch, compiled):
    cache = make(windows=2, horizontal_flip=True, random_crop=True)
    if compiled:
        monkeypatch.setattr("modules.training.latent_cache.COMPILED_CLIPS", 6)
        ms.set_context(mode=ms.GRAPH_MODE)  # the session's conftest restores it
    cache.build(chunk_size=2)
    assert cache.engine.conditioner.net is None  # no encoder stays in memory
    cached, plain, engine = cache.open(), cache.dataset, engine_of(checkpoint)
    assert len(cached) == 3 and [row.path for row in cached.rows] == list(VIDEOS)
    for epoch in range(2):
        for index in range(3):
            have, want = cached.sample(epoch, index), plain.sample(epoch, index)
            assert have["latents"].shape == (FRAMES, 4, LATENT, LATENT) and have["latents"].dtype == np.float32
            latents = encode(engine, "cond_frames", want["frames"]) * np.float32(0.18215)
            assert np.abs(have["latents"] - latents).max() < 1e-5 < np.abs(latents).max()
            token = encode(engine, "cond_frames_without_noise", want["frames"][:1])
            assert np.abs(have["clip_token"] - token[0]).max() < 1e-5 and have["clip_token"].shape == (1, 24)
            assert have["fps_id"] == want["fps"] - 1 and have["fps_id"].dtype == np.float32
            same = ("motion_bucket_id", "video", "start")
            assert all(have[name] == want[name] and have[name].dtype == want[name].dtype for name in same)


def test_epochs_go_through_windows_then_draws(make):
    cache = make(windows=2, draws=3)
    cache.build(chunk_size=4)
    cached = cache.open()
    seen = [cached.sample(epoch, 1) for epoch in range(8)]
    assert [float(s["start"]) for s in seen] == [float(seen[epoch % 2]["start"]) for epoch in range(8)]
    assert len({float(sample["cond_aug"]) for sample in seen[:6]}) == 6
    for name in cached.columns:
        assert np.array_equal(seen[6][name], seen[0][name]) and np.array_equal(seen[7][name], seen[1][name])


def test_draws_are_the_noised_first_frame(make, checkpoint):
    cache = make(rows=[("a.mp4", 20, 0)], draws=120)
    cache.build(chunk_size=40)
    with open_checkpoint(cache.clips[0].path) as source:
        cond_augs, cond_latents = np.array(source.read("cond_augs")), np.array(source.read("cond_latents"))
        clean = source.read("latents")[0] / np.float32(0.18215)
    logs = np.log(cond_augs)
    assert abs(logs.mean() + 3.0) < 4 * 0.5 / np.sqrt(120) and abs(logs.std() - 0.5) < 0.13  # 4 standard errors
    distance = np.sqrt(((cond_latents - clean) ** 2).mean((1, 2, 3)))
    assert np.corrcoef(logs, np.log(distance))[0, 1] > 0.9  # more noise, further from the clean latent
    assert len(np.unique(distance)) == 120
    nearly_clean = make(rows=[("a.mp4", 20, 0)], cond_aug=(-20.0, 0.0), draws=1)
    nearly_clean.build(chunk_size=4)
    assert np.abs(nearly_clean.open().sample(0, 0)["cond_latent"] - clean).max() < 1e-4


def test_batches(make_built):
    cache = make_built()
    loader = make_dataloader(cache.open(), batch_size=2, drop_remainder=False, num_workers=2)
    batches = list(loader)
    assert [len(batch["latents"]) for batch in batches] == [2, 1]
    shapes = {name: value.shape for name, value in batches[0].items()}
    assert shapes.pop("latents") == (2, FRAMES, 4, LATENT, LATENT) and shapes.pop("clip_token") == (2, 1, 24)
    assert shapes.pop("cond_latent") == (2, 4, LATENT, LATENT) and set(shapes.values()) == {(2,)}


def test_an_interrupted_build_goes_on(make, monkeypatch):
    cache = make(windows=2)
    save, count = save_safetensors, []

    def save_two(*args):
        if len(count) == 2:
            raise KeyboardInterrupt
        count.append(save(*args))

    monkeypatch.setattr("modules.training.latent_cache.save_safetensors", save_two)
    with pytest.raises(KeyboardInterrupt):
        cache.build(chunk_size=4)
    monkeypatch.undo()
    before = files(cache)
    assert len(before) == 2
    with pytest.raises(UserError, match=r"^--train\.latent_cache\.folder: .* lacks 4 of 6 clips, the first of b\.mp4"):
        cache.open()
    again = make(windows=2)
    again.build(chunk_size=4)
    after = files(again)
    assert len(after) == 6 and before.items() < after.items()
    again.build(chunk_size=4)
    assert files(again) == after


def test_ranks_share_the_work(make):
    first, second = make(windows=2), make(windows=2)
    first.build(4, rank=0, world_size=2)
    assert len(files(first)) == 3
    second.build(4, rank=1, world_size=2)
    assert len(files(first)) == 6 and len(first.open()) == 3


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"frames": 2}, "other frames"),
        ({"step": 1, "seed": 7}, "other step, seed"),
        ({"width": 128}, "other width"),
        ({"random_crop": True}, "other random_crop"),
        ({"draws": 3}, "other draws"),
        ({"cond_aug": (-2.0, 0.5)}, "other cond_aug"),
    ],
)
def test_other_settings_are_noticed(make_built, change, told):
    with pytest.raises(UserError, match=rf"lacks 3 of 3 clips.*made with {told}; build"):
        make_built(**change).open()


def test_other_encoders_are_noticed_another_unet_is_not(make_built, weights, tmp_path):
    changed = dict(weights)
    for name in weights:
        if name.startswith(("model.diffusion_model.", "first_stage_model.")):
            changed[name] = weights[name] + 1
    save_safetensors(tmp_path / "finetuned.safetensors", changed)
    assert len(make_built(path=tmp_path / "finetuned.safetensors").open()) == 3
    name = "conditioner.embedders.3.encoder.quant_conv.bias"
    save_safetensors(tmp_path / "other.safetensors", {**weights, name: weights[name] + np.float32(1e-3)})
    with pytest.raises(UserError, match="made with other encoders"):
        make_built(path=tmp_path / "other.safetensors").open()


def test_a_changed_video_is_noticed_and_only_it_is_made_again(make_built, data_dir):
    cache = make_built()
    before = files(cache)
    write_numbered(data_dir / "b.mp4", 30, height=64, width=96)
    with pytest.raises(UserError, match=r"lacks 1 of 3 clips, the first of b\.mp4; b\.mp4 is new or changed"):
        make_built().open()
    make_built().build()
    assert len(make_built().open()) == 3 and before.items() < files(cache).items() and len(files(cache)) == 4


def test_new_scores_need_no_new_encoding(make_built):
    cached = make_built(rows=[(name, 20, 200 + index) for index, name in enumerate(VIDEOS)]).open()
    assert [float(cached.sample(0, index)["motion_bucket_id"]) for index in range(3)] == [200, 201, 202]


def test_broken_videos_are_left_out_and_named(make, data_dir, caplog):
    (data_dir / "b.mp4").write_bytes(b"no video")
    cache = make(windows=2)
    cache.build(chunk_size=4)
    with caplog.at_level(logging.WARNING):
        cached = cache.open()
    assert [row.path for row in cached.rows] == ["a.mp4", "c.mp4"] and "1 broken videos: b.mp4" in caplog.text
    assert len(files(cache)) == 4 and float(cached.sample(0, 1)["video"]) == 1
    shutil.copy(data_dir / "a.mp4", data_dir / "b.mp4")
    repaired = make(windows=2)
    repaired.build(chunk_size=4)
    assert len(repaired.open()) == 3 and len(files(cache)) == 6


def test_too_many_broken_videos_stop_the_build_each_time(make, data_dir):
    for name in ("b.mp4", "c.mp4"):
        (data_dir / name).write_bytes(b"no video")
    for _ in range(2):
        with pytest.raises(UserError, match=r"2 of 3 videos are broken"):
            make().build()


def test_a_full_disk_is_noticed_before_it_is_full(make, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 3_000))
    cache = make()
    with pytest.raises(UserError, match="no room for 2 more clips of the latent cache"):
        cache.build(chunk_size=4)
    assert len(files(cache)) == 1


def test_a_damaged_file_is_named(make_built):
    cache = make_built()
    path = cache.clips[0].path
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UserError, match=rf"{path.name}.*truncated"):
        cache.open().sample(0, 0)


def test_it_has_the_interface_of_a_video_dataset(make_built):
    cache = make_built()
    public = {name for name in vars(VideoDataset) if not name.startswith("_")}
    assert public <= set(dir(cache.open())) | {"rows"}
