"""Latent diffusion as three parts over one checkpoint file: conditioning, denoising and decoding."""

from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Callable, Dict, List, Mapping, Optional, Tuple

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from tqdm import tqdm

from gm.backend import operators
from gm.backend.operators import inference
from gm.config.factory import LazyConfig
from gm.networks.autoencoder import DOWNSAMPLING, AutoencodingEngine
from gm.networks.conditioner import Conditioning, GeneralConditioner
from gm.networks.tiling import in_tiles
from gm.networks.unet import UNet
from gm.sampling.denoiser import Denoiser
from gm.sampling.feature_cache import FeatureCache
from gm.sampling.guidance import EVERY_SIGMA, Guider
from gm.sampling.samplers import Sampler
from gm.weights.checkpoint import open_checkpoint
from gm.weights.model_part import ModelPart
from gm.weights.names import compare_names

# What each part of a model has to be.
NetworkConfig = Annotated[LazyConfig, UNet]
ConditionerConfig = Annotated[LazyConfig, GeneralConditioner]
FirstStageConfig = Annotated[LazyConfig, AutoencodingEngine]


class DiffusionEngine:
    """Latent diffusion, conditioned on what embedders make of named inputs.

    Args:
        network: lazy config of the UNet.
        denoiser: the preconditioning.
        conditioner: lazy config of the embedders.
        first_stage: lazy config of the autoencoder.
        sampler: with its discretization and guider.
        scale_factor: what latents are multiplied by before diffusion.
        height, width: what the model was trained for; pixels.
        conditioner_prefix: of the embedders' names in the checkpoint.

    Attributes:
        backend: what :func:`gm.backend.operators.inference` is given beside the network: how it is compiled, if it is.
        feature_cache: the UNet is evaluated in full every so many times (:mod:`gm.sampling.feature_cache`); 1: always.
        tile_size: height and width in pixels that the autoencoder takes at once; larger images are encoded and
            decoded in overlapping tiles (:mod:`gm.networks.tiling`). 0: of any size.
        progress: gives, for a title, what wraps the iteration over a part's steps; a bar at first.
        watch: if set, is called with the conditioning and every guided estimate of the clean latents.
    """

    DEFERRED = ["network", "conditioner", "first_stage"]

    def __init__(
        self,
        network: NetworkConfig,
        denoiser: Denoiser,
        conditioner: ConditionerConfig,
        first_stage: FirstStageConfig,
        sampler: Sampler,
        scale_factor: float = 0.18215,
        height: int = 576,
        width: int = 1024,
        conditioner_prefix: str = "conditioner.",
    ) -> None:
        self.denoiser, self.sampler, self.scale_factor = denoiser, sampler, scale_factor
        self.height, self.width = height, width
        self.backend: Dict[str, Any] = {}
        self.feature_cache = 1
        self.tile_size = 0
        self.progress: Callable[[str], Callable] = progress_bar
        self.watch: Optional[Callable[[Conditioning, np.ndarray], None]] = None
        self._cache: Optional[FeatureCache] = None
        self.conditioner = ModelPart(conditioner, conditioner_prefix, "encoders", _used_in_conditioning)
        self.network = ModelPart(network, "model.diffusion_model.", "UNet")
        self.first_stage = ModelPart(first_stage, "first_stage_model.", "decoder", _used_in_decoding)

    @property
    def parts(self) -> Tuple[ModelPart, ModelPart, ModelPart]:
        return self.network, self.conditioner, self.first_stage

    def latent_shape(self, height: int, width: int) -> Tuple[int, int, int]:
        """(z, h, w) of an image's latent, for its size in pixels."""
        return self._latent_channels, height // DOWNSAMPLING, width // DOWNSAMPLING

    @cached_property
    def _latent_channels(self) -> int:
        return self.first_stage.shapes()["first_stage_model.decoder.conv_in.weight"][1]

    def parameter_shapes(self) -> Dict[str, Tuple[int, ...]]:
        """Published name -> shape of every parameter of the whole model."""
        return {name: shape for part in self.parts for name, shape in part.shapes().items()}

    def attach(self, checkpoint: Path, dtype: ms.Type = ms.float32, offload: bool = False) -> None:
        """Names the weights' file and compares its names and shapes with the network's; loads nothing yet.

        Args:
            dtype: of the UNet's and CLIP's weights; the autoencoder computes in fp32.
            offload: each part's weights are released when it ends.

        Raises:
            UserError: the file cannot be read, or is another model's; all differences are listed.
        """
        with open_checkpoint(checkpoint) as source:
            compare_names(self.parameter_shapes(), source.info, what=f"the checkpoint {checkpoint}")
        self.network.attach(checkpoint, dtype, offload)
        self.network.open().close()  # a LoRA that does not fit is refused before anything is loaded
        self.conditioner.attach(checkpoint, ms.float32, offload)
        self.first_stage.attach(checkpoint, ms.float32, offload)

    def load(self) -> None:
        """Loads every part now, unless they are loaded one at a time."""
        for part in self.parts:
            if not part.offload:
                part.load()

    def release(self) -> None:
        """Forgets the weights of every part."""
        for part in self.parts:
            part.release()

    def condition(self, *batches: Mapping[str, Any]) -> Tuple[Conditioning, ...]:
        """The conditioning of each batch of named inputs (:class:`gm.networks.conditioner.GeneralConditioner`)."""
        with self.conditioner as conditioner, inference(alone=True):
            return tuple(conditioner.condition(batch, self.tile_size) for batch in batches)

    def sample(
        self, cond: Conditioning, noise: np.ndarray, rng: np.random.Generator, uncond: Optional[Conditioning] = None
    ) -> np.ndarray:
        """Denoises latents.

        Args:
            cond: (b, …).
            noise: (b, k, z, h, w), unit Gaussian: k images to each row of the conditioning.
            rng: for samplers that add noise on the way.
            uncond: of the same b rows, what guidance leads away from; by default `cond` without its image.

        Returns:
            Latents (b, k, z, h, w), still multiplied by the scale factor.
        """
        with self.network as network, inference(None, True, network, **self.backend):
            evaluate = _network_function(self.network, self._features_of(network))
            halves = cond.unconditional() if uncond is None else uncond, cond
            denoise = _guided(self.denoiser, self.sampler.guider, evaluate, *halves, network.model_channels)
            if self.watch is not None:
                denoise = _watched(denoise, partial(self.watch, cond))
            return self.sampler(denoise, noise, rng, self.progress("sampling"))

    def _features_of(self, network: nn.Cell) -> Optional[FeatureCache]:
        """The feature cache, if there is to be one: one for each network, because it is compiled once."""
        if self.feature_cache == 1:
            return None
        cache = self._cache
        if cache is None or cache.network is not network or cache.interval != self.feature_cache:
            cache = FeatureCache(network, self.feature_cache)
        cache.clear()
        self._cache = None if self.network.offload else cache
        return cache

    def decode(self, latents: np.ndarray, chunk_size: Optional[int] = None) -> np.ndarray:
        """Latents to pixels.

        Args:
            latents: (b, k, z, h, w), multiplied by the scale factor.
            chunk_size: images of a row decoded together, a remainder by itself; None or 0 for all, or as many as a card
                takes.

        Returns:
            (b, k, 3, 8h, 8w), about -1..1.
        """
        height, width = (min(size, self.tile_size // DOWNSAMPLING or size) for size in latents.shape[-2:])
        with self.first_stage as autoencoder, inference(alone=True):
            numbers = height * width * autoencoder.decoder.numbers_per_place
            chunk = chunk_size or operators.current.images_at_once(latents.shape[1], numbers)
            rows = []
            for row in latents / np.float32(self.scale_factor):
                chunks = self.progress("decoding")([row[start : start + chunk] for start in range(0, len(row), chunk)])
                rows.append(np.concatenate([self._decoded(autoencoder, part) for part in chunks]))
        return np.stack(rows)

    def _decoded(self, autoencoder: AutoencodingEngine, latents: np.ndarray) -> np.ndarray:
        """(k, z, h, w), not scaled -> (k, 3, 8h, 8w)."""

        def decode(tile: np.ndarray) -> np.ndarray:
            return autoencoder.decode(Tensor(tile[None])).asnumpy()[0]

        return in_tiles(decode, latents, self.tile_size // DOWNSAMPLING, (1, DOWNSAMPLING))


def _used_in_conditioning(name: str) -> bool:
    """CLIP's image tower and the autoencoder's way in; not the text leftovers, not the image decoder."""
    text = ".open_clip.model." in name and ".visual." not in name
    return not (text or ".encoder.decoder." in name or ".post_quant_conv." in name)


def _used_in_decoding(name: str) -> bool:
    return name.startswith(("decoder.", "post_quant_conv."))


def progress_bar(title: str) -> Callable:
    """A progress bar with the time left; none where standard error is no terminal."""
    return partial(tqdm, desc=title, disable=None, leave=False)


def _watched(denoise: Callable, watch: Callable[[np.ndarray], None]) -> Callable:
    def denoise_and_show(x: np.ndarray, sigma: float) -> np.ndarray:
        estimate = denoise(x, sigma)
        watch(estimate)
        return estimate

    return denoise_and_show


def _network_function(part: ModelPart, cache: Optional[FeatureCache]) -> Callable:
    """The UNet on host arrays: (x, c_noise, cond) -> F, all with b rows."""
    network, dtype = part.net, part.dtype
    constants: Dict[int, Tuple[Conditioning, List[Tensor]]] = {}  # by the conditioning's identity

    def constant_inputs(cond: Conditioning) -> List[Tensor]:
        if id(cond) not in constants:
            parts = [part for part in (cond.crossattn, cond.vector) if part is not None]
            constants[id(cond)] = cond, [Tensor(part, dtype) for part in parts]
        return constants[id(cond)][1]

    def evaluate(x: np.ndarray, c_noise: np.ndarray, cond: Conditioning) -> np.ndarray:
        b, k, _, h, w = x.shape
        inputs = (Tensor(cond.beside(x), dtype), Tensor(c_noise), *constant_inputs(cond))
        out = operators.current.call(network, part.build.node, inputs) if cache is None else cache(cond, *inputs)
        return out.astype(ms.float32).asnumpy().reshape(b, k, -1, h, w)

    return evaluate


def _guided(
    denoiser: Denoiser, guider: Guider, evaluate: Callable, uncond: Conditioning, cond: Conditioning, channels: int
) -> Callable:
    """(x, σ) -> the guided estimate of the clean latents."""
    both = uncond.joined(cond)
    one_batch = guider.interval == EVERY_SIGMA  # else steps of either kind would be compiled separately

    def denoise(x: np.ndarray, sigma: float) -> np.ndarray:
        b, k, _, h, w = x.shape
        if not guider.is_active(k, sigma):
            return denoiser(evaluate, x, sigma, cond)
        first_level = 2 * b * k * h * w * channels * 4  # bytes of an activation, both halves
        if not one_batch or first_level > operators.current.batch_bytes:
            return guider(denoiser(evaluate, x, sigma, uncond), denoiser(evaluate, x, sigma, cond))
        halves = denoiser(evaluate, np.concatenate([x, x]), sigma, both)
        return guider(halves[:b], halves[b:])

    return denoise
