"""What the frozen parts make of a batch: latents and conditioning, from frames or from what was encoded before."""

from typing import Dict, Mapping, NamedTuple, Optional, Sequence

import numpy as np

from gm.model import Stage
from gm.networks.conditioner import Conditioning, GeneralConditioner
from gm.training.noise_levels import LogNormal
from gm.training.random_streams import COND_AUG, COND_NOISE, SampleRandom

FRAMES, CLEAN_FRAME, NOISED_FRAME = "frames", "cond_frames_without_noise", "cond_frames"
NUMBERS = ("fps_id", "motion_bucket_id", "cond_aug")  # embedded without weights


class EncodedBatch(NamedTuple):
    """Clips as the diffusion sees them (host arrays, fp32)."""

    latents: np.ndarray  # (b, t, 4, h, w), multiplied by the scale factor
    cond: Conditioning


class FrozenEncoders:
    """CLIP and the autoencoder, run without gradients; not even loaded for batches that were encoded before.

    The conditioning noise's standard deviation is drawn once per clip: it is in the noised frame and in the embedding.

    Args:
        stage: of the conditioner.
        scale_factor: what latents are multiplied by.
        cond_aug: the distribution of the conditioning noise's standard deviation.
        chunk_size: frames that the autoencoder encodes together.
    """

    def __init__(self, stage: Stage, scale_factor: float, cond_aug: LogNormal, chunk_size: int = 4) -> None:
        self.stage, self.scale_factor, self.cond_aug, self.chunk_size = stage, scale_factor, cond_aug, chunk_size
        self._numbers_only: Optional[GeneralConditioner] = None

    def __call__(self, batch: Mapping[str, np.ndarray], randoms: Sequence[SampleRandom]) -> EncodedBatch:
        """Encodes one batch.

        Args:
            batch: `fps_id` and `motion_bucket_id` (b,), and either `frames` (b, t, 3, H, W) in -1..1, or, encoded
                before: `latents` (b, t, 4, h, w), scaled; `clip_token` (b, n, c); `cond_latent` (b, 4, h, w); and
                `cond_aug` (b,), which the latter was made with.
            randoms: of the b clips.
        """
        return self._from_frames(batch, randoms) if FRAMES in batch else self._from_cache(batch)

    def _from_cache(self, batch: Mapping[str, np.ndarray]) -> EncodedBatch:
        if self._numbers_only is None:
            self._numbers_only = self.stage.skeleton()
        skip = [key for key in self._numbers_only.input_keys if key not in NUMBERS]
        vector = self._numbers_only.embed({name: batch[name] for name in NUMBERS}, skip)["vector"]
        return EncodedBatch(batch["latents"], Conditioning(vector, batch["clip_token"], batch["cond_latent"]))

    def _from_frames(self, batch: Mapping[str, np.ndarray], randoms: Sequence[SampleRandom]) -> EncodedBatch:
        frames = batch[FRAMES]
        first = frames[:, 0]
        cond_aug = np.array([self.cond_aug(random.stream(COND_AUG)) for random in randoms], np.float32)
        noise = np.stack([random.stream(COND_NOISE).standard_normal(first.shape[1:], np.float32) for random in randoms])
        inputs: Dict[str, np.ndarray] = {
            CLEAN_FRAME: first,
            NOISED_FRAME: first + cond_aug.reshape(-1, 1, 1, 1) * noise,
            "fps_id": batch["fps_id"],
            "motion_bucket_id": batch["motion_bucket_id"],
            "cond_aug": cond_aug,
        }
        cond = self.stage.load().condition(inputs)
        return EncodedBatch(self.latents(frames), cond)

    def latents(self, frames: np.ndarray) -> np.ndarray:
        """The mode of the autoencoder's posterior: (b, t, 3, H, W) -> (b, t, 4, h, w), scaled."""
        conditioner = self.stage.load()
        b, t = frames.shape[:2]
        pictures = frames.reshape(b * t, *frames.shape[2:])
        skip = [key for key in conditioner.input_keys if key != NOISED_FRAME]
        chunks = [pictures[start : start + self.chunk_size] for start in range(0, b * t, self.chunk_size)]
        encoded = np.concatenate([conditioner.embed({NOISED_FRAME: chunk}, skip)["concat"] for chunk in chunks])
        return (encoded * np.float32(self.scale_factor)).reshape(b, t, *encoded.shape[1:])
