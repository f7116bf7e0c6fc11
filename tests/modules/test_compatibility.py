"""ComfyUI's arithmetic written anew in PyTorch, and the options that choose a tool."""

import logging

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from gm.config.values import OptionError
from gm.networks.clip import OpenCLIP, VisionTransformer
from gm.networks.conditioner import FrozenOpenCLIPImageEmbedder
from gm.sampling.noise import TorchGenerator
from modules.compatibility import RESIZES, ComfyUI, Diffusers, Sgm, to_pixels
from modules.options import FrameOptions

pytestmark = pytest.mark.usefixtures("several_torch_threads")
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
SIZE, CLIP_SIZE = (64, 128), 56
SHAPES = {"landscape": (90, 200), "portrait": (150, 70), "square": (100, 100)}


@pytest.fixture(params=SHAPES)
def image(request):
    height, width = SHAPES[request.param]
    rng = np.random.default_rng(height)
    return np.clip(np.cumsum(rng.normal(0, 9, (height, width, 3)), 1) + 128, 0, 255).astype(np.uint8)


def comfy_image(image):
    """As its loader hands it on: (1, h, w, 3), 0..1."""
    return torch.from_numpy(image.astype(np.float32) / np.float32(255))[None]


def comfy_clip_input(image):
    x = comfy_image(image).movedim(-1, 1)
    scale = CLIP_SIZE / min(x.shape[2:])
    x = interpolate(x, size=[round(scale * s) for s in x.shape[2:]], mode="bicubic", antialias=True)
    top, left = (x.shape[2] - CLIP_SIZE) // 2, (x.shape[3] - CLIP_SIZE) // 2
    x = x[:, :, top : top + CLIP_SIZE, left : left + CLIP_SIZE]
    return ((torch.clip(255.0 * x, 0, 255).round() / 255.0 - MEAN) / STD).numpy()


def comfy_pixels(image):
    """(1, 64, 128, 3), 0..1: cropped in the middle, then scaled."""
    x = comfy_image(image).movedim(-1, 1)
    height, width = x.shape[2:]
    old, new = width / height, SIZE[1] / SIZE[0]
    left = round((width - width * (new / old)) / 2) if old > new else 0
    top = round((height - height * (old / new)) / 2) if old < new else 0
    x = x.narrow(-2, top, height - 2 * top).narrow(-1, left, width - 2 * left)
    return interpolate(x, size=SIZE, mode="bilinear").movedim(1, -1)


def test_comfyui_s_clip_input_bit_for_bit(image):
    tower = OpenCLIP(VisionTransformer(CLIP_SIZE, 14, 16, 1, 2, 32, 8), vocab_size=0)
    ours = FrozenOpenCLIPImageEmbedder(tower).prepare(ComfyUI.clip_image(image, None, CLIP_SIZE))
    assert ours.dtype == np.float32 and np.array_equal(ours, comfy_clip_input(image))


def test_comfyui_s_conditioning_frame_and_noise(image):
    pixels = RESIZES["bilinear"](image, *SIZE, (0.5, 0.5))
    assert np.array_equal(pixels, (comfy_pixels(image) * 2 - 1).movedim(-1, 1).numpy())
    latents = (1, 5, 4, 8, 16)
    image_noise, noise = ComfyUI.draw(TorchGenerator(7), pixels.shape, latents)
    generator = torch.manual_seed(7)
    assert np.abs(noise - torch.randn(latents[1:], generator=generator).numpy()).max() <= 1e-6
    level = 0.1
    noised = comfy_pixels(image) + level * torch.randn((1, *SIZE, 3), generator=generator)
    assert np.abs(pixels + level * image_noise - (noised * 2 - 1).movedim(-1, 1).numpy()).max() <= 1e-6


def test_comfyui_s_frames_are_truncated():
    decoded = np.random.default_rng(0).uniform(-1.2, 1.2, (1, 3, 3, 8, 8)).astype(np.float32)
    unit = torch.clamp((torch.from_numpy(decoded) + 1.0) / 2.0, min=0.0, max=1.0).movedim(2, -1)
    wanted = np.clip(255.0 * unit.numpy(), 0, 255).astype(np.uint8)
    assert np.array_equal(ComfyUI.to_frames(decoded), wanted)
    assert set((Sgm.to_frames(decoded).astype(int) - wanted).flat) == {0, 1}


def test_diffusers_draws_in_its_order_and_type():
    generator, shape, latents = torch.Generator().manual_seed(9), (1, 3, 64, 128), (1, 5, 4, 8, 16)
    image_noise, noise = Diffusers.draw(TorchGenerator(9), shape, latents, np.float16)
    assert np.abs(image_noise - torch.randn(shape, generator=generator).numpy()).max() <= 1e-6
    wanted = torch.randn(latents, generator=generator, dtype=torch.float16).numpy()
    assert (noise == wanted.astype(np.float32)).mean() > 0.99


def test_a_crop_s_place_is_refused_where_nothing_is_cropped_at_it():
    FrameOptions(like="diffusers", resize="crop", crop_offset=(0.0, 0.0))
    with pytest.raises(OptionError, match=r"crop_offset: \[0,0\] cannot be used with resize=squash"):
        FrameOptions(like="diffusers", crop_offset=(0.0, 0.0))


def test_what_comfyui_does_not_repeat_is_said(caplog):
    class Options:
        noise_aug_strength, sampler = 0.0, None

    with caplog.at_level(logging.WARNING):
        ComfyUI.warn(Options)
        assert not caplog.records
        Options.noise_aug_strength = 0.02
        ComfyUI.warn(Options)
    assert "from no seed" in caplog.text


def test_pixels_and_frames_are_each_other_s_inverse():
    image = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    for tool in (Sgm, Diffusers):
        assert np.array_equal(tool.to_frames(to_pixels(image)[:, None])[0, 0], image)
