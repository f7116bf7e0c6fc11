"""A model whose figures are known, and images for it: a camera that zooms as fast as its motion bucket tells it."""

from types import SimpleNamespace

import cv2
import numpy as np
from PIL import Image

from data.motion import motion_score
from svd_tools.evaluate import Clip

HEIGHT, WIDTH, FRAMES = 64, 96, 6
FPS = 7
RADIUS = 0.484  # mean distance from the centre, in shortest sides


class CameraModel:
    """Zooms into the picture, the faster the higher the bucket; its latents are its frames."""

    def __init__(self, shift=0, backwards=False):
        self.calls, self.shift, self.backwards = 0, shift, backwards
        self.pipeline = SimpleNamespace(fps=FPS, num_frames=FRAMES, settings={"name": "camera", "motion_bucket_id": 0})

    def fit(self, image):
        return cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)

    def reconstruct(self, image):
        return np.clip(image.astype(int) + 5, 0, 255).astype(np.uint8)

    def generate(self, image, motion_bucket_id, seed):
        self.calls += 1
        rate = motion_score(220 - motion_bucket_id if self.backwards else motion_bucket_id) / FPS / RADIUS
        rng = np.random.default_rng(seed)
        frames = []
        for frame in range(FRAMES):
            centre = ((WIDTH - 1) / 2, (HEIGHT - 1) / 2)
            matrix = cv2.getRotationMatrix2D(centre, 0, np.exp(rate * frame))
            moved = cv2.warpAffine(image, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC).astype(float)
            frames.append(moved + rng.normal(0, 0.7, moved.shape) + self.shift * frame)
        frames = np.clip(frames, 0, 255).astype(np.uint8)
        return Clip(frames, frames)

    def decode_one_by_one(self, latents):
        noise = np.random.default_rng(9).normal(0, 3, latents.shape)
        return np.clip(latents + noise, 0, 255).astype(np.uint8)


def write_pictures(folder):
    for seed in range(3):
        noise = np.random.default_rng(seed).normal(0, 1, (128, 192, 3)).astype(np.float32)
        texture = cv2.GaussianBlur(noise, (0, 0), 5)
        Image.fromarray(np.clip(texture * (45 / texture.std()) + 128, 0, 255).astype(np.uint8)).save(
            folder / f"{seed}.png"
        )
    return folder
