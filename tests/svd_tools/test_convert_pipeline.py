"""A converted folder in diffusers' pipeline, and a UNet from diffusers in ours: the same frames on the same noise."""

import mindspore as ms
import numpy as np
import pytest
import torch
from diffusers import StableVideoDiffusionPipeline, UNetSpatioTemporalConditionModel
from PIL import Image

from gm.backend.runtime import PYNATIVE_MODE
from modules.compatibility import to_pixels
from modules.pipeline import SVDPipeline
from tests.svd_tools.small_model import CONFIG, random_array, run_convert

SIZE, FRAMES, STEPS = 64, 3, 2
PIPELINE = "diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion"


@pytest.fixture
def picture():
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    return np.stack([127 + 120 * np.sin(x / (7 + c) + y / (11 - 2 * c)) for c in range(3)], axis=-1).astype(np.uint8)


@pytest.fixture
def noises():
    rng = np.random.default_rng(3)
    image_noise = rng.standard_normal((1, 3, SIZE, SIZE), np.float32)
    return image_noise, rng.standard_normal((1, FRAMES, 4, SIZE // 8, SIZE // 8), np.float32)


def our_frames(checkpoint, picture, noises):
    before = ms.get_context("mode")
    ms.set_context(mode=PYNATIVE_MODE)
    try:
        pipeline = SVDPipeline(CONFIG, checkpoint, num_frames=FRAMES, sampling_steps=STEPS, decode_chunk_size=FRAMES)
        return pipeline.animate(to_pixels(picture), *noises, np.random.default_rng(0))[0].astype(float)
    finally:
        ms.set_context(mode=before)


def their_frames(pipeline, picture, noises, monkeypatch):
    """The pipeline with everything as the folder says, but for the noise of the conditioning image."""
    monkeypatch.setattr(f"{PIPELINE}.randn_tensor", lambda *_, **__: torch.from_numpy(noises[0]))
    pipeline.set_progress_bar_config(disable=True)
    frames = pipeline(
        Image.fromarray(picture),
        height=SIZE, width=SIZE, num_inference_steps=STEPS, decode_chunk_size=FRAMES,
        min_guidance_scale=1.0, max_guidance_scale=2.5, fps=7, motion_bucket_id=127, noise_aug_strength=0.02,
        latents=torch.from_numpy(noises[1]), output_type="np",
    ).frames[0]  # fmt: skip
    return np.rint(frames * 255)


def assert_same_frames(ours, theirs):
    assert ours.shape == theirs.shape == (FRAMES, SIZE, SIZE, 3)
    assert theirs.std() > 10  # a picture, not a constant
    assert np.abs(ours - theirs).max() <= 1


def test_the_converted_folder_gives_our_frames(small, folder, picture, noises, monkeypatch):
    pipeline = StableVideoDiffusionPipeline.from_pretrained(folder)
    assert pipeline.unet.config.num_frames == FRAMES  # of the YAML
    theirs = their_frames(pipeline, picture, noises, monkeypatch)
    assert_same_frames(our_frames(small[0], picture, noises), theirs)


def test_a_unet_saved_by_diffusers_gives_its_frames_here(small, folder, tmp_path, picture, noises, monkeypatch):
    pipeline = StableVideoDiffusionPipeline.from_pretrained(folder)
    unet = UNetSpatioTemporalConditionModel.from_config(pipeline.unet.config)
    rng = np.random.default_rng(9)
    for name, parameter in unet.named_parameters():
        parameter.data = torch.from_numpy(random_array(name, tuple(parameter.shape), rng))
    unet.save_pretrained(tmp_path / "unet")
    pipeline.register_modules(unet=unet)
    theirs = their_frames(pipeline, picture, noises, monkeypatch)
    run_convert(tmp_path / "unet", tmp_path, f"--base={small[0]}", "--to=ckpt")
    assert_same_frames(our_frames(tmp_path / "unet.ckpt", picture, noises), theirs)
