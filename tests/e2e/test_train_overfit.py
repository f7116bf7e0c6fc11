"""A small model learns a handful of clips by heart: the loss falls tenfold, and a first frame gives its clip back.

All from scratch with train.py: first the autoencoder, then the UNet on what it encodes.
"""

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

import image_to_video
import train
from data.video_reader import VideoReader
from tests.data.synthetic_videos import write_video
from tests.e2e.training import PROJECT, PYNATIVE, checkpoints, losses

GRAPH = 0
MODEL = PROJECT / "tests/e2e/overfit.yaml"
CLIPS, FRAMES, SIZE, FPS = 3, 4, 64, 25
AUTOENCODER_STEPS, STEPS = 500, {GRAPH: 700, PYNATIVE: 350}  # a step takes four times as long in PyNative mode
MIN_PSNR, MIN_FALL = 25.0, 10.0  # dB, times

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with clips of bright clouds that move, their CSV, and each clip's first frame as a picture."""
    folder = tmp_path_factory.mktemp("overfit")
    rows = ["path,length,motion_bucket_id"]
    for index in range(CLIPS):
        write_video(folder / f"{index}.mp4", clouds(index), Fraction(FPS), options={"crf": "8"})
        rows.append(f"{index}.mp4,{FRAMES},{80 * index}")
        Image.fromarray(read_clip(folder, index)[0]).save(folder / f"{index}.png")
    (folder / "videos.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def autoencoder(place):
    """A model whose autoencoder knows the clips' frames; its UNet is random."""
    flags = ["--train.stage=autoencoder", "--train.dataset.init_args.frames=1", "--train.autoencoder.kl_weight=1e-4"]
    flags += ["--train.pretrained=", f"--train.max_steps={AUTOENCODER_STEPS}"]
    return learn(place, place / "autoencoder", GRAPH, *flags)


def clouds(index):
    """Frames, uint8 (h, w, 3): two soft spots over a shade, one of which moves nine pixels from frame to frame."""
    rng = np.random.default_rng(index)
    y, x = np.mgrid[:SIZE, :SIZE]
    shade = np.linspace(0, 1, SIZE)[:, None, None] * rng.uniform(-60, 60, 3) + 110
    colours = rng.choice([-110.0, 110.0], (2, 3))
    angle = 2 * np.pi * index / CLIPS
    frames = []
    for i in range(FRAMES):
        way = 9 * (i - (FRAMES - 1) / 2)
        places = ((SIZE / 2 + way * np.cos(angle), SIZE / 2 + way * np.sin(angle)), (14, 14))
        spots = [np.exp(-((x - a) ** 2 + (y - b) ** 2) / 200) for a, b in places]
        frame = shade + sum(spot[..., None] * colour for spot, colour in zip(spots, colours))
        frames.append(np.clip(frame, 0, 255).astype(np.uint8))
    return frames


def read_clip(folder, index):
    """uint8 (t, h, w, 3), as decoded."""
    with VideoReader(folder / f"{index}.mp4") as reader:
        return reader.read_clip(0, FRAMES, 1)


def learn(place, output, mode, *flags):
    """Trains; returns the model's file."""
    clips = "--train.dataset.init_args."
    common = [
        f"--svd_config={MODEL}", f"--train.output_dir={output}", "--train.scheduler.name=cosine_decay",
        f"--environment.mode={mode}", "--train.epochs=10000", "--train.temporal_only=False", "--train.keep=1",
        f"{clips}data_dir={place}", f"{clips}metadata={place / 'videos.csv'}", f"{clips}frames={FRAMES}",
        f"{clips}height={SIZE}", f"{clips}width={SIZE}", f"--train.dataloader.batch_size={CLIPS}",
        "--train.scheduler.lr=2e-3", "--train.scheduler.warmup_steps=20", "--train.optimizer.betas=[0.9,0.99]",
        "--train.optimizer.weight_decay=0", "--train.ema_decay=0", "--train.dropout.both=0", "--train.dropout.token=0",
        "--train.dropout.latent=0", "--train.sigma.P_mean=0.5", "--train.sigma.P_std=1.4", "--train.log_every=50",
    ]  # fmt: skip
    train.main([*common, *flags])
    return checkpoints(output)[-1] / "model.safetensors"


def learn_clips(place, output, mode, pretrained, *flags):
    """Trains the UNet on the encoded clips; returns the model's file."""
    cache = [f"--train.latent_cache.folder={place / 'cache'}", "--train.latent_cache.draws=4"]
    steps = f"--train.max_steps={STEPS[mode]}"
    return learn(place, output, mode, f"--train.pretrained={pretrained}", *cache, steps, *flags)


def fall(output):
    """How many times smaller the loss is at the end than it was at the beginning."""
    values = list(losses(output).values())
    return np.mean(values[:10]) / np.mean(values[-50:])


def psnr(have, want):
    """In dB, of two uint8 arrays."""
    return 10 * np.log10(255**2 / np.mean((have.astype(np.float64) - want) ** 2))


def assert_gives_clips_back(place, output, model, mode):
    """Sampling from a clip's first frame; a still picture would not do."""
    for index in range(CLIPS):
        clip = read_clip(place, index)
        assert psnr(np.broadcast_to(clip[:1], clip.shape), clip) < MIN_PSNR - 3
        videos = output / f"video_{index}"
        flags = [f"--SVD.config={MODEL}", f"--SVD.checkpoint={model}", f"--image={place / f'{index}.png'}"]
        flags += [f"--mode={mode}", f"--output_dir={videos}", "--output_format=png", f"--SVD.fps={FPS}"]
        flags += [f"--SVD.motion_bucket_id={80 * index}", "--SVD.noise_aug_strength=0.05", "--SVD.guider=constant"]
        image_to_video.main([*flags, "--SVD.min_cfg=1", "--SVD.max_cfg=1", "--SVD.sampling_steps=15"])
        (folder,) = videos.iterdir()
        frames = np.stack([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())])
        assert psnr(frames, clip) >= MIN_PSNR, f"clip {index}: {psnr(frames, clip):.1f} dB"


@pytest.mark.parametrize("mode", [GRAPH, PYNATIVE], ids=["graph", "pynative"])
def test_the_whole_unet_learns_clips_by_heart(place, autoencoder, tmp_path, mode):
    model = learn_clips(place, tmp_path, mode, autoencoder)
    assert fall(tmp_path) >= MIN_FALL
    assert_gives_clips_back(place, tmp_path, model, mode)


def test_temporal_layers_alone_learn_clips_by_heart(place, autoencoder, tmp_path):
    """From a model that has learnt single pictures."""
    single = ("--train.dataset.init_args.frames=1", "--train.latent_cache.windows=8", "--train.max_steps=400")
    images = learn_clips(place, tmp_path / "images", GRAPH, autoencoder, *single)
    model = learn_clips(place, tmp_path / "clips", GRAPH, images, "--train.temporal_only=True")
    assert fall(tmp_path / "clips") >= MIN_FALL
    assert_gives_clips_back(place, tmp_path / "clips", model, GRAPH)
