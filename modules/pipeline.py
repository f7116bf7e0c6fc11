"""Image to video: from a picture to frames, with every setting of the command line."""

from __future__ import annotations

import logging
import math
from functools import partial
from pathlib import Path
from typing import Any, Dict, Literal, Optional, Tuple, Union

import numpy as np

from data.image_reader import fit_image
from data.motion import MAX_BUCKET
from gm.backend.runtime import GRAPH_MODE, PYNATIVE_MODE
from gm.config.factory import load_model
from gm.errors import UserError
from gm.sampling.guidance import EVERY_SIGMA
from gm.weights.checkpoint import file_sha256
from modules.frame_size import SIZE_MULTIPLE, check_frame_size
from modules.generation import ClipSettings, draw_noise, generate, to_frames, to_pixels
from modules.sampling_choices import choose_sampler

LEAST_TILE = 128  # pixels: a smaller one is all seam

logger = logging.getLogger(__name__)


class SVDPipeline:
    """Stable Video Diffusion, image to video.

    Args:
        config: YAML file that defines the model.
        checkpoint: its weights: a published svd*.safetensors (fp32 or fp16), the reference toolkit's .ckpt, or a file
            that train.py or svd_tools/convert.py wrote.
        num_frames: frames to generate. By default what the model was trained for.
        fps: frames per second of the video, 5 to 30 recommended; the model is conditioned on it.
        motion_bucket_id: how much motion, 0 to 255.
        noise_aug_strength: standard deviation of the noise added to the image (range -1..1) before it is encoded: more
            means more motion and less likeness.
        decode_chunk_size: frames decoded at a time; fewer take less memory, more flicker less. 0 decodes all at once.
        tile_size: height and width in pixels that the autoencoder takes at once, a multiple of 64 from 128 on: larger
            pictures are encoded and decoded in tiles that overlap by a fourth, for less memory. 0 takes any size.
        sampling_steps: steps of the sampler. 0 takes the YAML's.
        amp_level: O0 computes in fp32, O2 in fp16 (the autoencoder and all norms stay in fp32); auto is O2 on Ascend
            and O0 on CPU.
        sampler: euler (SVD's own), heun, euler_ancestral, dpmpp2m, or consistency (for UNets distilled to few steps,
            such as AnimateLCM-SVD's). By default the YAML's.
        schedule: noise levels: karras (SVD's own) or ays (Align Your Steps: good at 10 steps). By default the YAML's.
        guider: how the guidance scale runs over the frames: linear (from min to max), constant, triangle or trapezoid
            (max in the middle). By default the YAML's.
        min_cfg: lowest guidance scale. By default the YAML's.
        max_cfg: highest guidance scale. By default the YAML's.
        guidance_interval: the lowest and the highest noise level (sigma) that is guided; outside it a step takes half
            the time. By default all are.
        feature_cache: evaluate the whole UNet at every so many steps only, and its last stage alone in between
            (DeepCache): 2 takes little more than half the time at full size and costs some quality. 1 is exact.
        height: of the video in pixels, a multiple of 64. By default what the model was trained for.
        width: of the video in pixels, a multiple of 64. By default what the model was trained for.
        crop_offset: what part of an image of another shape is kept: vertical and horizontal position of the crop, 0
            (top, left) to 1 (bottom, right).
        offload: load each stage's weights when it starts and release them when it ends: less memory, more reading.
        fuse_kernels: on CPU in graph mode, compile chains of small operators to one kernel each: a seventh off a
            step's time and a quarter off its memory at full size. Needs g++; kernels are kept in the user's cache
            folder. By default for UNets of over 100 million parameters, where g++ is there.
        compile_cache: in graph mode, keep what was compiled in the user's cache folder, so that the next run of the
            same size need not compile it again (not with feature_cache). By default on CPU.
        lora: a LoRA file of train.py's, merged into the UNet while it is loaded.
        lora_scale: how strongly the LoRA acts; 1 as it was trained, 0 not at all.
    """

    def __init__(
        self,
        config: Union[str, Path],
        checkpoint: Union[str, Path],
        num_frames: Optional[int] = None,
        fps: int = 7,
        motion_bucket_id: int = 127,
        noise_aug_strength: float = 0.02,
        decode_chunk_size: int = 0,
        tile_size: int = 0,
        sampling_steps: int = 0,
        amp_level: Literal["auto", "O0", "O2"] = "auto",
        sampler: Optional[Literal["euler", "heun", "euler_ancestral", "dpmpp2m", "consistency"]] = None,
        schedule: Optional[Literal["karras", "ays"]] = None,
        guider: Optional[Literal["linear", "constant", "triangle", "trapezoid"]] = None,
        min_cfg: Optional[float] = None,
        max_cfg: Optional[float] = None,
        guidance_interval: Optional[Tuple[float, float]] = None,
        feature_cache: int = 1,
        height: Optional[int] = None,
        width: Optional[int] = None,
        crop_offset: Tuple[float, float] = (0.5, 0.5),
        offload: bool = False,
        fuse_kernels: Optional[bool] = None,
        compile_cache: Optional[bool] = None,
        lora: Optional[str] = None,
        lora_scale: float = 1.0,
    ) -> None:
        self.engine = load_model(config, flag="--SVD.config")
        self.num_frames = self.engine.num_frames if num_frames is None else num_frames
        self.height = self.engine.height if height is None else height
        self.width = self.engine.width if width is None else width
        self.fps, self.motion_bucket_id = fps, motion_bucket_id
        self.noise_aug_strength = noise_aug_strength
        self.decode_chunk_size = decode_chunk_size
        self.engine.tile_size = tile_size
        self.crop_offset = tuple(crop_offset)
        self._check()
        if sampling_steps < 0:
            raise UserError(f"--SVD.sampling_steps={sampling_steps}: must be 0 (the YAML's) or more")
        current = self.engine.sampler
        self.engine.sampler = choose_sampler(
            current, sampler, schedule, guider, min_cfg, max_cfg, sampling_steps, guidance_interval
        )
        self.engine.fuse_kernels = fuse_kernels
        if feature_cache < 1:
            raise UserError(f"--SVD.feature_cache={feature_cache}: must be 1 (exact) or more")
        self.engine.feature_cache = feature_cache
        self.engine.compile_cache = _device() == "CPU" if compile_cache is None else compile_cache
        self.lora, self.lora_scale = lora, lora_scale
        if lora is not None:
            self._overlay_lora()
        elif lora_scale != 1:
            raise UserError(f"--SVD.lora_scale={lora_scale:g}: there is no LoRA; name one with --SVD.lora")
        self.checkpoint = Path(checkpoint)
        self._sha256: Optional[str] = None
        self._load(amp_level, offload)

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:
        """Animates a picture.

        Args:
            image: (h, w, 3) uint8 RGB of any size; resized and cropped to the video's.
            seed: of all noise; the same seed gives the same frames.

        Returns:
            (t, height, width, 3), uint8.
        """
        rng = np.random.default_rng(seed)
        pixels = to_pixels(fit_image(image, self.height, self.width, self.crop_offset))
        return self.animate(pixels, *draw_noise(self.engine, pixels, self.num_frames, rng), rng)[0]

    def animate(
        self, pixels: np.ndarray, image_noise: np.ndarray, noise: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Animates first frames from given noise.

        Args:
            pixels: (b, 3, height, width), range -1..1.
            image_noise: of the same shape, unit Gaussian, for the noise augmentation.
            noise: (b, t, 4, height/8, width/8), unit Gaussian.
            rng: for samplers that add noise on the way.

        Returns:
            (b, t, height, width, 3), uint8.
        """
        settings = ClipSettings(self.fps, self.motion_bucket_id, self.noise_aug_strength, self.decode_chunk_size)
        return to_frames(generate(self.engine, pixels, (image_noise, noise), rng, settings))

    @property
    def preferred_mode(self) -> int:
        """The mode that makes a video soonest: on Ascend networks are compiled, on CPU operators run one by one."""
        return GRAPH_MODE if _device() == "Ascend" else PYNATIVE_MODE

    @property
    def settings(self) -> Dict[str, Any]:
        """What made the frames, for a file's metadata."""
        sampler = self.engine.sampler
        interval = sampler.guider.interval
        if self._sha256 is None:
            self._sha256 = file_sha256(self.checkpoint)
        return {
            "checkpoint": self.checkpoint.name,
            "checkpoint_sha256": self._sha256,
            "num_frames": self.num_frames,
            "height": self.height,
            "width": self.width,
            "fps": self.fps,
            "motion_bucket_id": self.motion_bucket_id,
            "noise_aug_strength": self.noise_aug_strength,
            "decode_chunk_size": self.decode_chunk_size,
            "tile_size": self.engine.tile_size,
            "sampling_steps": sampler.num_steps,
            "sampler": type(sampler).__name__,
            "schedule": type(sampler.discretization).__name__,
            "guider": type(sampler.guider).__name__,
            "min_cfg": sampler.guider.min_scale,
            "max_cfg": sampler.guider.max_scale,
            "guidance_interval": None if interval == EVERY_SIGMA else list(interval),
            "feature_cache": self.engine.feature_cache,
            "dtype": str(self.engine.network.dtype).lower(),
            "crop_offset": list(self.crop_offset),
            "lora": self.lora and Path(self.lora).name,
            "lora_scale": self.lora_scale,
        }

    def _load(self, amp_level: str, offload: bool) -> None:
        from gm.networks.precision import amp_dtype

        dtype = amp_dtype(amp_level, _device())
        if not self.checkpoint.exists():
            raise UserError(f"--SVD.checkpoint: there is no file {self.checkpoint}; name the weights (README, Weights)")
        self.engine.attach(self.checkpoint, dtype, offload)
        self.engine.load()

    def _overlay_lora(self) -> None:
        from gm.weights.lora_file import MergedSource, read_lora

        if not math.isfinite(self.lora_scale):
            raise UserError(f"--SVD.lora_scale={self.lora_scale}: must be a finite number")
        self.engine.network.overlay = partial(MergedSource, lora=read_lora(self.lora), scale=self.lora_scale)

    def _check(self) -> None:
        """Refuses what cannot work, and warns of what works badly."""
        for flag, value in (("height", self.height), ("width", self.width)):
            check_frame_size(f"--SVD.{flag}", value)
        if self.num_frames < 1:
            raise UserError(f"--SVD.num_frames={self.num_frames}: must be 1 or more")
        if self.fps < 1:
            raise UserError(f"--SVD.fps={self.fps}: must be 1 or more")
        if not 0 <= self.motion_bucket_id <= MAX_BUCKET:
            raise UserError(f"--SVD.motion_bucket_id={self.motion_bucket_id}: must be 0 to {MAX_BUCKET}")
        if self.noise_aug_strength < 0:
            raise UserError(f"--SVD.noise_aug_strength={self.noise_aug_strength}: must be 0 or more")
        if self.decode_chunk_size < 0:
            raise UserError(f"--SVD.decode_chunk_size={self.decode_chunk_size}: must be 0 (all frames) or more")
        tile_size = self.engine.tile_size
        if tile_size and (tile_size < LEAST_TILE or tile_size % SIZE_MULTIPLE):
            allowed = f"0 (any size), or a multiple of {SIZE_MULTIPLE} from {LEAST_TILE} on"
            raise UserError(f"--SVD.tile_size={tile_size}: must be {allowed}")
        if not all(0 <= offset <= 1 for offset in self.crop_offset):
            raise UserError(f"--SVD.crop_offset={list(self.crop_offset)}: both must be 0 to 1")
        if not 5 <= self.fps <= 30:
            logger.warning("--SVD.fps=%d is outside the range 5 to 30 that the model was trained for", self.fps)


def _device() -> str:
    import mindspore as ms

    return ms.get_context("device_target")
