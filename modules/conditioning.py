"""What the embedders of a first frame are fed with when a video is sampled."""

from typing import Dict

import numpy as np


def conditioning_inputs(
    pixels: np.ndarray, image_noise: np.ndarray, fps: float, motion_bucket_id: float, noise_aug_strength: float
) -> Dict[str, np.ndarray]:
    """The embedders' inputs by their `input_key`, for a batch of first frames.

    Args:
        pixels: (b, 3, height, width), range -1..1.
        image_noise: of the same shape, unit Gaussian.
        fps: frames per second; the model is conditioned on one less, as in training.
        motion_bucket_id: 0 to 255.
        noise_aug_strength: the noise's standard deviation in the frame that the autoencoder sees; CLIP sees it clean.
    """
    ones = np.ones(len(pixels), np.float32)
    return {
        "cond_frames_without_noise": pixels,
        "cond_frames": pixels + np.float32(noise_aug_strength) * image_noise,
        "fps_id": ones * (fps - 1),
        "motion_bucket_id": ones * motion_bucket_id,
        "cond_aug": ones * noise_aug_strength,
    }
