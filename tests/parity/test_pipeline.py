"""The whole pipeline against diffusers' on the same weights, image and noise: frames within 1/255 everywhere."""

from contextlib import nullcontext

import mindspore as ms
import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableVideoDiffusionPipeline
from PIL import Image
from transformers import CLIPImageProcessor

from gm.backend import winograd
from gm.backend.operators import Operators
from gm.backend.runtime import GRAPH_MODE, PYNATIVE_MODE
from gm.errors import UserError
from modules.compatibility import to_pixels
from modules.pipeline import SVDPipeline
from tests.gm.backend import mint_on_cpu
from tests.parity.peers import CONFIG

STEPS = 3


@pytest.fixture(scope="module")
def image():
    y, x = np.mgrid[0:64, 0:128]
    waves = [127 + 120 * np.sin(x / (7 + c) + y / (11 - 2 * c)) for c in range(3)]
    return np.stack(waves, axis=-1).astype(np.uint8)


def diffusers_frames(peer, image, monkeypatch, image_noise=None, **options):
    """diffusers' pipeline, with the given noise in place of its own if there is any."""
    size = 56
    scheduler = EulerDiscreteScheduler(
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
        prediction_type="v_prediction",
        timestep_type="continuous",
        timestep_spacing="leading",
    )
    processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    pipe = StableVideoDiffusionPipeline(peer.vae, peer.image_encoder, peer.unet, scheduler, processor)
    pipe.set_progress_bar_config(disable=True)
    module = "diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion"
    real = __import__(module, fromlist=["_resize_with_antialiasing"])._resize_with_antialiasing
    # The pipeline resizes to 224 pixels; the small tower takes 56.
    monkeypatch.setattr(f"{module}._resize_with_antialiasing", lambda x, _: real(x, (size, size)))
    if image_noise is not None:
        monkeypatch.setattr(f"{module}.randn_tensor", lambda *_, **__: torch.from_numpy(image_noise))
    out = pipe(
        Image.fromarray(image),
        height=64,
        width=128,
        num_inference_steps=STEPS,
        min_guidance_scale=1.5,
        max_guidance_scale=2.5,
        fps=7,
        motion_bucket_id=127,
        output_type="np",
        **options,
    )
    return np.rint(out.frames[0] * 255)


@pytest.mark.parametrize(
    "frames, chunk, mode, tiles",
    [
        (14, 14, PYNATIVE_MODE, False),
        pytest.param(5, 2, GRAPH_MODE, False, marks=pytest.mark.slow),  # compiles for more than a minute
        (1, 1, PYNATIVE_MODE, False),
        (5, 5, PYNATIVE_MODE, True),
    ],
)
def test_same_frames_as_diffusers(peer, image, frames, chunk, mode, tiles, monkeypatch):
    if tiles:  # every 3x3 convolution by minimal filtering, as at full size
        monkeypatch.setattr(winograd, "LEAST_CHANNELS", 1)
        monkeypatch.setattr(winograd, "LEAST_TILES", 1)
    rng = np.random.default_rng(3)
    image_noise = rng.standard_normal((1, 3, 64, 128), np.float32)
    noise = rng.standard_normal((1, frames, 4, 8, 16), np.float32)
    ms.set_context(mode=mode)  # the session's conftest restores it
    pipeline = SVDPipeline(
        CONFIG, peer.checkpoint, num_frames=frames, sampling_steps=STEPS, decode_chunk_size=chunk, min_cfg=1.5
    )
    ours = pipeline.animate(to_pixels(image), image_noise, noise, rng)[0].astype(float)
    given = {"num_frames": frames, "decode_chunk_size": chunk, "latents": torch.from_numpy(noise)}
    theirs = diffusers_frames(peer, image, monkeypatch, image_noise, noise_aug_strength=0.02, **given)
    assert theirs.std() > 10  # a picture, not a constant
    assert np.abs(ours - theirs).max() <= 1


@pytest.fixture(scope="module")
def like_diffusers(peer):
    return SVDPipeline(CONFIG, peer.checkpoint, num_frames=2, sampling_steps=STEPS, min_cfg=1.5, like="diffusers")


@pytest.mark.parametrize("shape", [(90, 250), (150, 70), (100, 100)], ids=["landscape", "portrait", "square"])
@pytest.mark.parametrize("augmentation", [0.0, 0.02, 0.3])
def test_a_seed_gives_diffusers_own_video(peer, like_diffusers, shape, augmentation, monkeypatch):
    """Its noise, order of draws, resizing and view of CLIP, for images that do not have the video's size."""
    steps = np.random.default_rng(shape[0]).normal(0, 9, (*shape, 3))
    image = np.clip(np.cumsum(steps, axis=1) + 128, 0, 255).astype(np.uint8)
    like_diffusers.noise_aug_strength = augmentation
    ours = like_diffusers(image, seed=7).astype(float)
    generator = torch.Generator().manual_seed(7)
    options = {"num_frames": 2, "noise_aug_strength": augmentation, "generator": generator}
    theirs = diffusers_frames(peer, image, monkeypatch, **options)
    assert theirs.std() > 10
    assert np.abs(ours - theirs).max() <= 1


@pytest.fixture(scope="module")
def pipeline(peer):
    return SVDPipeline(CONFIG, peer.checkpoint, num_frames=3, sampling_steps=2)


@pytest.fixture(scope="module")
def frames_of_seed_7(pipeline, image):
    ms.set_context(mode=PYNATIVE_MODE)
    return pipeline(image, seed=7)


def test_a_seed_gives_the_same_frames_in_both_modes(pipeline, image, frames_of_seed_7):
    assert np.array_equal(pipeline(image, seed=7), frames_of_seed_7)
    assert not np.array_equal(pipeline(image, seed=8), frames_of_seed_7)
    ms.set_context(mode=GRAPH_MODE)  # the session's conftest restores it
    in_graph_mode = pipeline(image, seed=7)
    assert np.abs(in_graph_mode.astype(int) - frames_of_seed_7.astype(int)).max() <= 1


@pytest.mark.parametrize("wanted", [None, False])
def test_what_is_compiled_is_kept_unless_told_otherwise(peer, image, monkeypatch, wanted):
    recipes, where = [], "gm.backend.compile_cache.kept_compilation"
    monkeypatch.setattr(where, lambda recipe, inputs: recipes.append(recipe) or nullcontext())
    SVDPipeline(CONFIG, peer.checkpoint, num_frames=1, sampling_steps=1, compile_cache=wanted)(image, 7)
    assert bool(recipes) == (wanted is None)


def test_ascend_s_operators_in_half_precision(peer, image, frames_of_seed_7, monkeypatch):
    """The fused attention as a formula in fp32; the frames are as near to fp32's as by the CPU's operators."""
    mint_on_cpu.run_as_on_ascend(monkeypatch)
    half = SVDPipeline(CONFIG, peer.checkpoint, num_frames=3, sampling_steps=2, amp_level="O2")
    difference = half(image, 7).astype(float) - frames_of_seed_7
    assert 0 < np.abs(difference).mean() < 1.5


def test_offloading_changes_nothing(peer, image, frames_of_seed_7):
    offloaded = SVDPipeline(CONFIG, peer.checkpoint, num_frames=3, sampling_steps=2, offload=True)
    assert all(stage.net is None for stage in offloaded.engine.parts)
    assert np.array_equal(offloaded(image, 7), frames_of_seed_7)
    assert all(stage.net is None for stage in offloaded.engine.parts)


def test_options_can_be_changed_between_videos_and_the_estimates_watched(peer, image, frames_of_seed_7):
    changed = SVDPipeline(CONFIG, peer.checkpoint, num_frames=2, sampling_steps=1, guider="constant", max_cfg=3.0)
    before = changed.settings
    wrong = {"fps": 0}, {"width": 100}, {"min_cfg": 1.0}, {"num_frames": 3, "offload": True}
    for options, name in zip(wrong, ("fps", "width", "min_cfg", "offload")):
        with pytest.raises(UserError, match=f"^--SVD.{name}: "):
            changed.update(**options)
        assert changed.settings == before
    changed.update(num_frames=3, sampling_steps=2, guider=None, max_cfg=None)
    seen = []
    changed.engine.watch = lambda cond, latents: seen.append((cond.concat.shape, latents.shape))
    assert np.array_equal(changed(image, 7), frames_of_seed_7)
    height, width = changed.height // 8, changed.width // 8
    assert seen == [((1, 4, height, width), (1, 3, 4, height, width))] * 2


def test_guidance_halves_in_one_batch_or_in_turn(pipeline, image, frames_of_seed_7, monkeypatch):
    monkeypatch.setattr(Operators, "batch_bytes", 0)
    assert np.abs(pipeline(image, 7).astype(int) - frames_of_seed_7.astype(int)).max() <= 1


def test_guidance_on_an_interval_of_sigmas(peer, image, frames_of_seed_7):
    """The two steps are at σ 700 and 0.002: one, or neither, is outside."""

    def sample(**options):
        return SVDPipeline(CONFIG, peer.checkpoint, num_frames=3, sampling_steps=2, **options)(image, 7).astype(int)

    assert np.abs(sample(guidance_interval=(0.0, 1000.0)) - frames_of_seed_7).max() <= 1
    assert np.abs(sample(guidance_interval=(0.0, 1.0)) - frames_of_seed_7).max() > 1
    assert np.abs(sample(guidance_interval=(800.0, 900.0)) - sample(guider="constant", max_cfg=1.0)).max() <= 1


@pytest.mark.parametrize("batched_bytes", [0, 1 << 27], ids=["in turn", "one batch"])
def test_feature_cache(peer, image, frames_of_seed_7, monkeypatch, batched_bytes):
    """The first step is exact, the second, in the middle of three, is not; the third's noise level is nearly 0."""
    monkeypatch.setattr(Operators, "batch_bytes", batched_bytes)

    def sample(steps, **options):
        pipeline = SVDPipeline(CONFIG, peer.checkpoint, num_frames=3, sampling_steps=steps, **options)
        return pipeline(image, 7).astype(int)

    assert np.abs(sample(2, feature_cache=2) - frames_of_seed_7).max() <= 1
    assert np.abs(sample(3, feature_cache=2) - sample(3)).max() > 1


def test_amp_level_o2_computes_in_half_precision(peer, image, frames_of_seed_7):
    half = SVDPipeline(CONFIG, peer.checkpoint, num_frames=3, sampling_steps=2, amp_level="O2")
    weights = dict(half.engine.network.net.parameters_and_names())
    assert weights["out.2.weight"].dtype == ms.float16
    assert weights["out.0.weight"].dtype == ms.float32  # norms stay
    difference = half(image, 7).astype(float) - frames_of_seed_7
    assert 0 < np.abs(difference).mean() < 1.5
