import logging
from contextlib import contextmanager
from types import SimpleNamespace

import imageio.v3 as iio
import mindspore as ms
import numpy as np
import pytest
from PIL import Image

from data.metadata_csv import COLUMNS, write_rows
from data.video_dataset import VideoDataset
from data.video_writer import read_metadata
from gm.config.factory import instantiate, load_config
from gm.errors import UserError
from gm.training.callbacks import TensorBoardLog
from gm.training.objective import NOISE, ConditioningDropout, LogNormal, Objective, SampleRandom, unit_gaussian
from gm.weights.checkpoint import save_safetensors
from modules.compatibility import Sgm
from modules.pipeline import SVDPipeline
from modules.training.inputs import FrozenEncoders, UNetInputs
from modules.training.options import ValidationOptions
from modules.training.validation import SIGMAS, VALIDATION_EPOCH, ValidationClips, ValidationVideos, psnr
from tests.data.synthetic_videos import pan, write_video
from tests.gm.training.events import read_events
from tests.modules.training.test_latent_cache import CONFIG, weight

OPTIONS = {"num_frames": 2, "height": 64, "width": 64, "sampling_steps": 1, "fps": 5}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    rng = np.random.default_rng(0)
    shapes = instantiate(load_config(CONFIG)["model"]).parameter_shapes()
    save_safetensors(path, {name: weight(rng, name, shape) for name, shape in shapes.items()})
    return path


@pytest.fixture(scope="module")
def engine(checkpoint):
    engine = instantiate(load_config(CONFIG)["model"])
    engine.attach(checkpoint)
    engine.load()
    return engine


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(1)
    for name in ("hill", "lake"):
        Image.fromarray(rng.integers(0, 255, (80, 100, 3), np.uint8)).save(folder / f"{name}.png")
    return folder


class Trainer(SimpleNamespace):
    """The part of the trainer that callbacks see; its average differs from the weights by one parameter."""

    @contextmanager
    def averaged(self):
        parameter = self.engine.network.net.out[2].bias
        before = parameter.value().copy()
        parameter.set_data(before + self.shift)
        try:
            yield
        finally:
            parameter.set_data(before)


@pytest.fixture
def trainer(tmp_path, engine):
    return Trainer(step=30, total_steps=100, output_dir=tmp_path / "run", engine=engine, shift=0.0)


def test_a_video_of_each_image_and_seed_as_mp4_and_in_tensorboard(tmp_path, trainer, images):
    log = TensorBoardLog(tmp_path / "tensorboard")
    ValidationVideos(images, seeds=(1, 2), log=log, **OPTIONS).on_validation(30, trainer)
    names = [f"{stem}_seed{seed}" for stem in ("hill", "lake") for seed in (1, 2)]
    paths = sorted((tmp_path / "run" / "validation").iterdir())
    assert [path.name for path in paths] == [f"{name}_step00000030.mp4" for name in names]
    videos = [iio.imread(path) for path in paths]
    assert all(video.shape == (2, 64, 64, 3) for video in videos) and not np.array_equal(videos[0], videos[1])
    assert read_metadata(paths[0])["step"] == 30
    values = [event.summary.value[0] for event in read_events(tmp_path / "tensorboard")]
    assert [value.tag for value in values] == [f"validation/{name}" for name in names]
    assert values[0].image.encoded_image_string.startswith(b"GIF89a") and values[0].image.width == 64


def test_it_is_the_video_of_the_command_with_the_averaged_weights(trainer, images, checkpoint, monkeypatch):
    written = []
    monkeypatch.setattr("modules.training.validation.write_video", lambda frames, *_: written.append(frames))
    validation = ValidationVideos(images / "hill.png", seeds=(5,), **OPTIONS)
    for trainer.shift in (0.0, 0.5):
        validation.on_validation(30, trainer)
    pipeline = SVDPipeline(CONFIG, checkpoint, num_frames=2, height=64, width=64, sampling_steps=1, fps=5)
    image = np.asarray(Image.open(images / "hill.png"))
    plain = pipeline(image, seed=5)
    with Trainer(engine=pipeline.engine, shift=0.5).averaged():
        shifted = pipeline(image, seed=5)
    assert np.array_equal(written[0], plain) and np.array_equal(written[1], shifted)
    assert np.abs(plain.astype(int) - shifted).mean() > 5
    assert trainer.engine.sampler.num_steps == 25  # the engine's own sampler is back


def test_what_cannot_be_written_stops_nothing_and_is_tried_again(trainer, images, caplog):
    validation = ValidationVideos(images / "hill.png", **OPTIONS)
    trainer.output_dir.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        validation.on_validation(30, trainer)
    assert "the validation video hill_seed42 of step 30 failed" in caplog.text
    trainer.output_dir.unlink()
    validation.on_validation(40, trainer)
    assert [path.name for path in (trainer.output_dir / "validation").iterdir()] == ["hill_seed42_step00000040.mp4"]


def test_errors_in_the_program_pass_and_the_weights_are_back(trainer, images, monkeypatch):
    validation = ValidationVideos(images, **OPTIONS)
    monkeypatch.setattr(trainer.engine, "decode", lambda *_: 1 / 0)
    bias = trainer.engine.network.net.out[2].bias.asnumpy().copy()
    trainer.shift = 0.5
    with pytest.raises(ZeroDivisionError):
        validation.on_validation(30, trainer)
    assert np.array_equal(trainer.engine.network.net.out[2].bias.asnumpy(), bias)


def test_a_model_that_gives_no_numbers_is_told(trainer, images, caplog):
    trainer.shift = ms.Tensor(np.nan, ms.float32)
    with caplog.at_level(logging.WARNING):
        ValidationVideos(images / "hill.png", **OPTIONS).on_validation(30, trainer)
    assert "hill_seed42 of step 30 failed: the latents are not finite numbers" in caplog.text
    assert not (trainer.output_dir / "validation").exists()


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Two clips of two frames each, with what a validation needs of a run."""
    folder = tmp_path_factory.mktemp("videos")
    for index in range(2):
        write_video(folder / f"{index}.mp4", pan(2, 64, 64, 3.0, seed=index))
    write_rows(folder / "videos.csv", COLUMNS, [("0.mp4", 2, 40), ("1.mp4", 2, 80)])
    return VideoDataset(folder, folder / "videos.csv", frames=2, height=64, width=64)


@pytest.fixture
def judged(trainer, checkpoint):
    engine = trainer.engine
    encoders = FrozenEncoders(engine.conditioner, engine.scale_factor, LogNormal(-3.0, 0.5))
    trainer.prepare = UNetInputs(encoders, Objective(engine.denoiser.scaling, LogNormal(1, 1.6), ConditioningDropout()))
    trainer.reports = []
    trainer.report = trainer.reports.append
    trainer.step = 0
    return trainer


def test_the_loss_is_that_by_hand_and_the_same_every_time(judged, videos):
    """Karras et al., equation 8, in double precision: the mean of λ(σ)·|D(z0 + σn; σ) - z0|², σ and n being fixed."""
    options = ValidationOptions(every=1, sampling_steps=1)
    validation = ValidationClips(videos, options, seed=3)
    for step in (0, 1):
        validation.on_validation(step, judged)
    assert judged.reports[0] == judged.reports[1]
    want = {sigma: [] for sigma in SIGMAS}
    for index in range(2):
        randoms = [SampleRandom(3, VALIDATION_EPOCH, index)]
        latents, cond = judged.prepare.encoders(videos.collate([videos.read(0, index)]), randoms)
        noise = unit_gaussian(randoms, NOISE, latents.shape[1:]).astype(np.float64)
        for sigma in SIGMAS:
            noisy = latents + sigma * noise
            x = cond.beside((noisy / np.sqrt(sigma**2 + 1)).astype(np.float32))
            level = np.array([0.25 * np.log(sigma)], np.float32)
            network = judged.engine.network.load()
            f = network(*map(ms.Tensor, (x, level, cond.crossattn, cond.vector))).asnumpy().reshape(latents.shape)
            d = noisy / (sigma**2 + 1) - sigma / np.sqrt(sigma**2 + 1) * f
            want[sigma].append((1 + sigma**2) / sigma**2 * np.mean((d - latents) ** 2))
    means = {f"validation/loss_sigma_{sigma:g}": np.mean(values) for sigma, values in want.items()}
    have = {name: judged.reports[0][name] for name in means}
    assert have == pytest.approx(means, rel=1e-4)
    assert judged.reports[0]["validation/loss"] == pytest.approx(np.mean(list(means.values())), rel=1e-4)


def test_a_clip_and_its_sample_side_by_side(judged, videos, tmp_path, monkeypatch):
    written = {}

    def keep(frames, path, *_):
        written[path] = frames

    monkeypatch.setattr("modules.training.validation.write_video", keep)
    options = ValidationOptions(every=1, clips=1, sampling_steps=1)
    ValidationClips(videos, options, 3, TensorBoardLog(tmp_path / "tensorboard")).on_validation(0, judged)
    ((path, frames),) = written.items()
    clip = Sgm.to_frames(videos.sample(0, 0)["frames"][None])[0]
    assert path == judged.output_dir / "validation" / "clip_0000_step00000000.mp4" and frames.shape == (2, 64, 128, 3)
    assert np.array_equal(frames[:, :, :64], clip)
    figures = judged.reports[0]
    assert figures["validation/psnr_still"] == pytest.approx(psnr(np.stack([clip[0], clip[0]]), clip))
    assert figures["validation/psnr"] == pytest.approx(psnr(frames[:, :, 64:], clip))
    (value,) = read_events(tmp_path / "tensorboard")[0].summary.value
    assert value.tag == "validation/clip_0000" and value.image.width == 128


def test_a_clip_that_cannot_be_sampled_stops_nothing(judged, videos, caplog):
    judged.shift = ms.Tensor(np.nan, ms.float32)
    with caplog.at_level(logging.WARNING):
        ValidationClips(videos, ValidationOptions(every=1, clips=1, sampling_steps=1), 3).on_validation(0, judged)
    assert "the validation on clip_0000 of step 0 failed: the latents are not finite" in caplog.text
    assert not judged.reports


def test_a_missing_image_is_told_before_training():
    with pytest.raises(UserError, match=r"^--train\.validation\.images: no\.png does not exist"):
        ValidationVideos("no.png", **OPTIONS)
