"""A rough look at frames while they are sampled: latents become colours by a linear map."""

import io
from base64 import b64encode
from typing import Any, Callable, Optional

import numpy as np
from PIL import Image

RIDGE = 1e-2  # of the map from latents to colours; latents are about 1
QUALITY = 80  # of the WebP pictures


class Preview:
    """Shows estimates of the clean latents as small pictures that move; the engine's `watch`.

    Latents become colours by one linear map for each video: the least-squares fit of the picture's own latent to its
    own colours, so that it suits any autoencoder.

    Args:
        fitted: (height, width, 3) uint8, the picture as the model sees it.
        fps: of the preview.
        scale_factor: what latents are multiplied by, but not the picture's own.
        report: gets data URLs of WebP pictures.
    """

    def __init__(self, fitted: np.ndarray, fps: float, scale_factor: float, report: Callable[[str], None]) -> None:
        self.fitted, self.fps, self.scale_factor, self.report = fitted, fps, scale_factor, report
        self.colours: Optional[np.ndarray] = None

    def __call__(self, cond: Any, latents: np.ndarray) -> None:
        """Reports the frames of the first clip; latents: (1, t, z, h, w)."""
        if self.colours is None:
            self.colours = fit_colours(cond.concat[0] * self.scale_factor, self.fitted)
        frames = to_colours(latents[0], self.colours)
        images = [Image.fromarray(frame) for frame in frames]
        file = io.BytesIO()
        options = {"save_all": True, "append_images": images[1:], "duration": round(1000 / self.fps), "loop": 0}
        images[0].save(file, "webp", quality=QUALITY, **options)
        self.report(f"data:image/webp;base64,{b64encode(file.getvalue()).decode()}")


def fit_colours(latent: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The affine map from latents to colours that fits one image best, by ridge regression.

    Args:
        latent: (z, h, w), of the image.
        image: (H, W, 3) uint8.

    Returns:
        (z + 1, 3): the last row is the constant.
    """
    height, width = latent.shape[1:]
    small = Image.fromarray(image).resize((width, height), Image.Resampling.BOX)
    targets = np.asarray(small, np.float64).reshape(-1, 3)  # h w c -> (h w) c
    inputs = _with_ones(latent.astype(np.float64).transpose(1, 2, 0).reshape(height * width, -1))  # z h w -> (h w) z
    penalty = RIDGE * len(inputs) * np.diag([*[1.0] * (inputs.shape[1] - 1), 0.0])
    return np.linalg.solve(inputs.T @ inputs + penalty, inputs.T @ targets)


def to_colours(latents: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """(t, z, h, w) -> (t, h, w, 3) uint8."""
    values = _with_ones(latents.transpose(0, 2, 3, 1)) @ colours  # t z h w -> t h w z
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _with_ones(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values, np.ones((*values.shape[:-1], 1))], axis=-1)
