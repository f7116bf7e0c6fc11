"""Whole pipelines against diffusers' on the same weights, prompts and noise: pictures within 1/255 everywhere."""

import numpy as np
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from transformers import CLIPTokenizer

from gm import text_to_image
from gm.networks.tokenizer import END, START, read_vocabulary
from gm.sampling.training_levels import TRAINING_SIGMAS

STEPS = 3
HEIGHT, WIDTH = 64, 128
PROMPT = "a watercolour of a fox in the snow, highly detailed"
TRAINING = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def clip_tokenizer(pad_token):
    """transformers' own, of the same vocabulary."""
    names, merges = read_vocabulary()
    vocab = {**names, "<|startoftext|>": START, "<|endoftext|>": END}
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad_token, model_max_length=77)


def scheduler(name, sampler, schedule):
    options = {**TRAINING, "prediction_type": "v_prediction" if name == "sd_2_1" else "epsilon"}
    if sampler == "dpmpp2m":
        return DPMSolverMultistepScheduler(**options, use_karras_sigmas=True)
    if schedule == "karras":  # between the training's lowest and highest level, as the other does by itself
        ends = {"sigma_min": float(TRAINING_SIGMAS[0]), "sigma_max": float(TRAINING_SIGMAS[-1])}
        options.update(**ends, use_karras_sigmas=True)
    return EulerDiscreteScheduler(**options, timestep_spacing="leading")


def diffusers_picture(peer, name, sampler, schedule, negative, noise):
    parts = {"vae": peer.vae, "text_encoder": peer.text_encoder, "unet": peer.unet}
    parts["scheduler"] = scheduler(name, sampler, schedule)
    if name == "sd_xl_base":
        parts.update(tokenizer=clip_tokenizer("<|endoftext|>"), tokenizer_2=clip_tokenizer("!"))
        pipe = StableDiffusionXLPipeline(**parts, text_encoder_2=peer.text_encoder_2, add_watermarker=False)
    else:
        parts["tokenizer"] = clip_tokenizer("!" if name == "sd_2_1" else "<|endoftext|>")
        extra = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipe = StableDiffusionPipeline(**parts, **extra)
    pipe.set_progress_bar_config(disable=True)
    out = pipe(
        PROMPT, negative_prompt=negative, height=HEIGHT, width=WIDTH, num_inference_steps=STEPS, guidance_scale=5.0,
        latents=torch.from_numpy(noise[0]), output_type="np",
    )  # fmt: skip
    return np.rint(out.images[0] * 255)


CASES = {
    "sd_xl_base": [("euler", "leading", None), ("dpmpp2m", "karras", "")],
    "sd_1_5": [("dpmpp2m", "karras", None), ("euler", "karras", "blurry")],
    "sd_2_1": [("euler", "leading", "")],
}


def test_same_pictures_as_diffusers(stable_diffusion):
    name = stable_diffusion.config.stem[: -len("_small")]
    noise = np.random.default_rng(3).standard_normal((1, 1, 4, HEIGHT // 8, WIDTH // 8), np.float32)
    for sampler, schedule, negative in CASES[name]:
        pipeline = text_to_image.StableDiffusionPipeline(
            stable_diffusion.config, stable_diffusion.checkpoint, height=HEIGHT, width=WIDTH, sampler=sampler,
            schedule=schedule, cfg=5.0, sampling_steps=STEPS,
        )  # fmt: skip
        ours = pipeline.paint(pipeline.encode(PROMPT, negative), noise, np.random.default_rng(0)).astype(float)
        theirs = diffusers_picture(stable_diffusion, name, sampler, schedule, negative, noise)
        assert theirs.std() > 10  # a picture, not a constant
        assert np.abs(ours - theirs).max() <= 1, (name, sampler, schedule, negative)
    pipeline.engine.feature_cache = 2
    cached = pipeline.paint(pipeline.encode(PROMPT, negative), noise, np.random.default_rng(0)).astype(float)
    assert np.abs(cached - ours).max() > 1, "the second step is not exact"
