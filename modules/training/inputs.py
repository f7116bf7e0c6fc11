"""From the data set's batches to what the losses take, for each stage of training."""

import logging
from functools import cached_property
from typing import List, NamedTuple, Optional, Tuple, Union

import numpy as np
from mindspore import Tensor

from gm.backend.operators import inference
from gm.networks.autoencoder import DOWNSAMPLING
from gm.networks.conditioner import Conditioning, GeneralConditioner
from gm.networks.lora import LoRADropout
from gm.training.autoencoder_loss import ReconstructionInputs
from gm.training.objective import (
    COND_AUG,
    COND_NOISE,
    LORA_DROPOUT,
    NOISE,
    LogNormal,
    Objective,
    TrainInputs,
    unit_gaussian,
)
from gm.training.trainer import Batch, Randoms
from gm.weights.model_part import ModelPart
from modules.conditioning import conditioning_inputs, encode_frames
from modules.options import TRAINED_FPS

FRAMES = "frames"

logger = logging.getLogger(__name__)


class FrozenEncoders:
    """CLIP and the autoencoder, run without gradients; not even loaded for batches that were encoded before.

    The conditioning noise's standard deviation is drawn once per clip: it is in the noised frame and in the embedding.

    Args:
        stage: of the conditioner.
        scale_factor: what latents are multiplied by.
        cond_aug: the distribution of the conditioning noise's standard deviation.
        chunk_size: frames that the autoencoder encodes together.
    """

    def __init__(self, stage: ModelPart, scale_factor: float, cond_aug: LogNormal, chunk_size: int = 4) -> None:
        self.stage, self.scale_factor, self.cond_aug, self.chunk_size = stage, scale_factor, cond_aug, chunk_size
        self._rate_noted = False

    @cached_property
    def _without_weights(self) -> GeneralConditioner:
        return self.stage.skeleton()

    @inference(None)
    def __call__(self, batch: Batch, randoms: Randoms) -> Tuple[np.ndarray, Conditioning]:
        """Encodes one batch.

        Args:
            batch: `motion_bucket_id` (b,), and either `frames` (b, t, 3, H, W) in -1..1 with their `fps` (b,), or,
                encoded before: `latents` (b, t, 4, h, w), scaled; `clip_token` (b, n, c); `cond_latent` (b, 4, h, w);
                `fps_id` (b,); and `cond_aug` (b,), which the latent was made with.
            randoms: of the b clips.

        Returns:
            The clips' latents (b, t, 4, h, w), multiplied by the scale factor, and their conditioning.
        """
        self._note_rate(batch["fps"] if FRAMES in batch else batch["fps_id"] + 1)
        if FRAMES not in batch:
            embedders = self._without_weights.embedders
            numbers = {e.input_key: batch[e.input_key] for e in embedders if e.output == "vector"}
            vector = self._without_weights.embed(numbers)["vector"]
            return batch["latents"], Conditioning(vector, batch["clip_token"], batch["cond_latent"])
        first = batch[FRAMES][:, 0]
        cond_aug = np.array([self.cond_aug(random.stream(COND_AUG)) for random in randoms], np.float32)
        noise = unit_gaussian(randoms, COND_NOISE, first.shape[1:])
        inputs = conditioning_inputs(first, noise, batch["fps"], batch["motion_bucket_id"], cond_aug)
        return self.latents(batch[FRAMES]), self.stage.load().condition(inputs)

    def _note_rate(self, fps: np.ndarray) -> None:
        """Warns once of clips whose frame rate (b,) no video is asked for."""
        low, high = TRAINED_FPS
        outside = fps[(fps < low) | (fps > high)]
        if len(outside) and not self._rate_noted:
            self._rate_noted = True
            logger.warning(
                "a clip of %.3g frames per second is trained on, and SVD was trained from %d to %d; choose another "
                "--train.dataset.init_args.step, or say …fps",
                outside[0], low, high,
            )  # fmt: skip

    def latents(self, frames: np.ndarray) -> np.ndarray:
        """The mode of the autoencoder's posterior: (b, t, 3, H, W) -> (b, t, 4, h, w), scaled."""
        b, t = frames.shape[:2]
        encoded = encode_frames(self.stage.load(), frames.reshape(b * t, *frames.shape[2:]), self.chunk_size)
        return (encoded * np.float32(self.scale_factor)).reshape(b, t, *encoded.shape[1:])


class DroppedInputs(NamedTuple):
    """One batch, with the masks of a LoRA's dropout from its tensors to its losses; validation sees none."""

    inputs: TrainInputs
    dropout: LoRADropout
    keys: List[int]  # of the clips

    def tensors(self) -> List[Tensor]:
        """See :meth:`TrainInputs.tensors`."""
        self.dropout.draw(self.keys)
        return self.inputs.tensors()

    def loss_sums(self, losses: np.ndarray) -> np.ndarray:
        """See :meth:`TrainInputs.loss_sums`."""
        self.dropout.rest()
        return self.inputs.loss_sums(losses)


class UNetInputs(NamedTuple):
    """For the UNet: encoded, noised, conditioned."""

    encoders: FrozenEncoders
    objective: Objective
    dropout: Optional[LoRADropout] = None  # of the UNet's LoRA

    def __call__(self, batch: Batch, randoms: Randoms) -> Union[TrainInputs, DroppedInputs]:
        """One batch, as :class:`FrozenEncoders` takes it."""
        inputs = self.objective(*self.encoders(batch, randoms), randoms)
        if self.dropout is None:
            return inputs
        return DroppedInputs(
            inputs, self.dropout, [int(random.stream(LORA_DROPOUT).integers(2**31)) for random in randoms]
        )


class AutoencoderInputs(NamedTuple):
    """For the image autoencoder: frames, and the noise that its posterior is sampled with."""

    z_channels: int

    def __call__(self, batch: Batch, randoms: Randoms) -> ReconstructionInputs:
        """One batch with its `frames`."""
        return ReconstructionInputs(batch[FRAMES], latent_noise(batch[FRAMES], self.z_channels, randoms))


class DecoderInputs(NamedTuple):
    """For the temporal decoder: encoded frames, a little noised, as a UNet's results are not perfect either."""

    encoders: FrozenEncoders
    noise: float  # standard deviation, of latents that are multiplied by the scale factor

    def __call__(self, batch: Batch, randoms: Randoms) -> ReconstructionInputs:
        """One batch with its `frames`."""
        latents = self.encoders.latents(batch[FRAMES])
        latents = latents.reshape(-1, *latents.shape[2:])  # b t c h w -> (b t) c h w
        scaled = latents + np.float32(self.noise) * latent_noise(batch[FRAMES], latents.shape[1], randoms)
        return ReconstructionInputs(batch[FRAMES], scaled / np.float32(self.encoders.scale_factor))


def latent_noise(frames: np.ndarray, z_channels: int, randoms: Randoms) -> np.ndarray:
    """Unit Gaussian noise of the latents' shape: (b, t, 3, H, W) -> (b·t, z, h, w)."""
    t, _, height, width = frames.shape[1:]
    noise = unit_gaussian(randoms, NOISE, (t, z_channels, height // DOWNSAMPLING, width // DOWNSAMPLING))
    return noise.reshape(-1, *noise.shape[2:])
