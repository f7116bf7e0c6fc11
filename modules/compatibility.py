"""From an image and a seed to a model's inputs, and from its output to 8-bit frames, as three tools do it.

The networks agree; what is around them does not. Sources: sgm's scripts/sampling/simple_video_sample.py, diffusers'
StableVideoDiffusionPipeline (0.42), ComfyUI's nodes SVD_img2vid_Conditioning, KSampler and SaveImage (0.3).
"""

import logging
from typing import Any, Callable, Mapping, Tuple, Type

import numpy as np
from PIL import Image

from data.image_reader import fit_image
from gm.networks.interpolate import antialiased_bicubic, bilinear, interpolate

Noises = Tuple[np.ndarray, np.ndarray]
logger = logging.getLogger(__name__)


class Sgm:
    """Stability AI's way, and this toolkit's own.

    Attributes:
        noise, resize: what the flags of these names are by default.
    """

    noise, resize = "numpy", "crop"

    @staticmethod
    def draw(rng: Any, pixels: Tuple[int, ...], latents: Tuple[int, ...], dtype: Any = np.float32) -> Noises:
        """Unit Gaussian noise for the image and the latents, in fp32.

        Args:
            rng: one of :data:`gm.sampling.noise.GENERATORS`.
            pixels, latents: the shapes, (b, 3, height, width) and (b, t, c, h, w).
            dtype: NumPy's, in which the network computes.
        """
        del dtype
        return rng.standard_normal(pixels, np.float32), rng.standard_normal(latents, np.float32)

    @staticmethod
    def clip_image(image: np.ndarray, pixels: np.ndarray, size: int) -> np.ndarray:
        """What CLIP is given.

        Args:
            image: (h, w, 3) uint8, of its own size.
            pixels: (1, 3, height, width), range -1..1: the same in the video's size.
            size: of the image that CLIP's network takes.

        Returns:
            (1, 3, H, W), range -1..1, still to be resized, or (1, 3, size, size) uint8.
        """
        del image, size
        return pixels

    @staticmethod
    def to_frames(pixels: np.ndarray) -> np.ndarray:
        """(b, t, 3, h, w), range -1..1, clipped -> (b, t, h, w, 3), uint8."""
        return np.rint(_unit(pixels) * 255).astype(np.uint8)

    @staticmethod
    def warn(options: Any) -> None:
        """Says what of these :class:`modules.options.VideoOptions` cannot be as in the tool."""


class Diffusers(Sgm):
    """StableVideoDiffusionPipeline with a CPU generator: CLIP sees the image in its own size and shape."""

    noise, resize = "torch", "squash"

    @staticmethod
    def draw(rng: Any, pixels: Tuple[int, ...], latents: Tuple[int, ...], dtype: Any = np.float32) -> Noises:
        """As sgm; the latents' noise has the network's type."""
        image_noise, noise = Sgm.draw(rng, pixels, latents)
        return image_noise, noise.astype(dtype).astype(np.float32)

    @staticmethod
    def clip_image(image: np.ndarray, pixels: np.ndarray, size: int) -> np.ndarray:
        """The image itself, to be squashed."""
        return to_pixels(image)


class ComfyUI(Sgm):
    """Its own nodes on the CPU's noise, which they use on every device."""

    noise, resize = "torch", "bilinear"

    @staticmethod
    def draw(rng: Any, pixels: Tuple[int, ...], latents: Tuple[int, ...], dtype: Any = np.float32) -> Noises:
        """The latents first; the image's noise is added at range 0..1, which is half of ours, with channels last."""
        noise = rng.standard_normal(latents, np.float32)
        b, c, h, w = pixels
        return 2 * rng.standard_normal((b, h, w, c), np.float32).transpose(0, 3, 1, 2), noise  # b h w c -> b c h w

    @staticmethod
    def clip_image(image: np.ndarray, pixels: np.ndarray, size: int) -> np.ndarray:
        """The image's middle square, resized and rounded to 8 bits."""
        unit = image.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)  # h w c -> 1 c h w
        if unit.shape[2:] != (size, size):
            scale = size / min(unit.shape[2:])
            height, width = (round(scale * side) for side in unit.shape[2:])
            unit = interpolate(unit, (height, width), antialiased_bicubic)
            top, left = (height - size) // 2, (width - size) // 2
            unit = unit[:, :, top : top + size, left : left + size]
        return np.rint(np.clip(np.float32(255) * unit, 0, 255)).astype(np.uint8)

    @staticmethod
    def to_frames(pixels: np.ndarray) -> np.ndarray:
        """As sgm, but cut off below the full number."""
        return (np.float32(255) * _unit(pixels)).astype(np.uint8)

    @staticmethod
    def warn(options: Any) -> None:
        if options.noise_aug_strength > 0:
            logger.warning(
                "ComfyUI draws the image's noise from no seed, so no run repeats it: this video has noise as strong, "
                "but not the same; noise_aug_strength=0 (augmentation_level 0) gives ComfyUI's video"
            )
        if options.sampler in ("euler_ancestral", "consistency"):
            logger.warning("the noise that the sampler %s adds on the way is not ComfyUI's", options.sampler)


TOOLS: Mapping[str, Type[Sgm]] = {"sgm": Sgm, "diffusers": Diffusers, "comfyui": ComfyUI}


def to_pixels(image: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8 -> (1, 3, h, w), fp32, range -1..1."""
    return (image.astype(np.float32) / 127.5 - 1.0).transpose(2, 0, 1)[None]


def _unit(pixels: np.ndarray) -> np.ndarray:
    """(b, t, 3, h, w), range -1..1, clipped -> (b, t, h, w, 3), range 0..1."""
    return np.clip(pixels / 2 + 0.5, 0, 1).transpose(0, 1, 3, 4, 2)


def _crop(image: np.ndarray, height: int, width: int, crop_offset: Tuple[float, float]) -> np.ndarray:
    return to_pixels(fit_image(image, height, width, crop_offset))


def _squash(image: np.ndarray, height: int, width: int, crop_offset: Tuple[float, float]) -> np.ndarray:
    del crop_offset
    return to_pixels(np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)))


def _bilinear(image: np.ndarray, height: int, width: int, crop_offset: Tuple[float, float]) -> np.ndarray:
    """Cropped in the middle to whole pixels, then interpolated without antialias; not rounded to 8 bits."""
    del crop_offset
    rows, columns = image.shape[:2]
    aspect, wanted = columns / rows, width / height
    left = round((columns - columns * (wanted / aspect)) / 2) if aspect > wanted else 0
    top = round((rows - rows * (aspect / wanted)) / 2) if aspect < wanted else 0
    cropped = image[top : rows - top, left : columns - left].transpose(2, 0, 1)[None]  # h w c -> 1 c h w
    return interpolate(cropped.astype(np.float32) / np.float32(255), (height, width), bilinear) * 2 - 1


# image (h, w, 3) uint8, height, width, crop_offset -> (1, 3, height, width), range -1..1
RESIZES: Mapping[str, Callable[..., np.ndarray]] = {"crop": _crop, "squash": _squash, "bilinear": _bilinear}
