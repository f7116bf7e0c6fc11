"""What the pipelines of pictures and of videos have in common: their weights, and results that have to be finite."""

import logging
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional, Tuple, Union

import numpy as np

from gm.config.factory import load_model
from gm.config.values import OptionError, Options, flags_below
from gm.errors import UserError
from gm.options import WeightOptions
from gm.sampling.guidance import EVERY_SIGMA
from gm.sampling.samplers import SAMPLERS, Sampler
from gm.weights.checkpoint import file_sha256
from gm.weights.lora_file import LoRA, MergedSource, read_lora
from gm.weights.model_kind import in_project, portable

if TYPE_CHECKING:  # MindSpore is imported when an engine is built
    from gm.model import DiffusionEngine

LOADED_WITH = ("lora", "lora_scale", "lora_alpha", "checkpoint_sha256", "amp_level", "offload")

logger = logging.getLogger(__name__)


class Pipeline:
    """A model with its weights that is a group of options as well, which can be changed between two results.

    Subclasses name the class of the options alone (`group`, also a parent of theirs) and what the command's flags start
    with (`flag`, for error lines).
    """

    def __init__(self, config: Union[str, Path], checkpoint: Union[str, Path], **options: Any) -> None:
        with flags_below(self.flag):
            super().__init__(**options)
            self.engine = load_model(config, flag=f"{self.flag}config")
            self._yaml_sampler = self.engine.sampler
            self._set(self)
        self.checkpoint = Path(checkpoint)
        load_weights(self.engine, self.checkpoint, self, self.flag)

    def update(self, **options: Any) -> None:
        """Changes options of what is made from now on; the others stay. None takes the model's value again.

        Raises:
            UserError: an option cannot be used, or concerns how the weights were loaded: that takes a new pipeline.
                Then nothing changes.
        """
        with flags_below(self.flag):
            for name in [name for name in LOADED_WITH if options.get(name, getattr(self, name)) != getattr(self, name)]:
                raise OptionError(f"{name}: the weights are loaded already; make a new pipeline for another value")
            self._set(self.group(**{**asdict(self), **options}))

    def _set(self, options: Options) -> None:
        """Takes all options, completed with the model's, or, where they contradict each other, none."""
        raise NotImplementedError

    def _take(self, values: Mapping[str, Any], sampler: Sampler) -> None:
        """Completed options and the sampler that they choose, for what is made from now on."""
        vars(self).update(values)
        engine = self.engine
        engine.sampler, engine.tile_size, engine.feature_cache = sampler, self.tile_size, self.feature_cache
        engine.backend = {"fuse_kernels": self.fuse_kernels, "compile_cache": self.compile_cache}


def load_weights(engine: "DiffusionEngine", checkpoint: Path, options: WeightOptions, flag: str) -> None:
    """Attaches an engine to its checkpoint, with the LoRA merged into it, and loads what is not loaded part by part.

    Args:
        flag: what the command's flags of this model start with, for error lines.

    Raises:
        UserError: no such file, or one that does not fit.
    """
    from gm.networks.precision import amp_dtype

    if options.lora is not None:
        lora = chosen_lora(options, engine.parameter_shapes(), flag)
        if lora.note:
            logger.warning("%slora: %s: %s", flag, lora.path, lora.note)
        overlay = partial(MergedSource, lora=lora, scale=options.lora_scale)
        engine.network.overlay = engine.conditioner.overlay = overlay
    if not checkpoint.exists():
        raise UserError(f"{flag}checkpoint: there is no file {checkpoint}; name the weights (README, Weights)")
    if options.checkpoint_sha256 is not None and options.checkpoint_sha256 != file_sha256(checkpoint):
        raise UserError(
            f"{flag}checkpoint: {checkpoint} is not the file of {flag}checkpoint_sha256, or has changed; name that, "
            f"or take this one with {flag}checkpoint_sha256=null"
        )
    engine.attach(checkpoint, amp_dtype(options.amp_level), options.offload)
    engine.load()


def chosen_lora(options: WeightOptions, shapes: Mapping[str, Tuple[int, ...]], flag: str) -> LoRA:
    """The LoRA that options name, for a network or a checkpoint of these names and shapes.

    Raises:
        UserError: it cannot be read, or has layers that are not among the names.
    """
    try:
        return read_lora(in_project(options.lora), shapes, options.lora_alpha)
    except UserError as error:
        raise UserError(f"{flag}lora: {error}") from error


def common_settings(pipeline: Any) -> Dict[str, Any]:
    """What made a pipeline's results, as its flags take it: every option, and what took the place of those not given.

    The weights' file is hashed when its hash is first asked for.
    """
    sampler = pipeline.engine.sampler
    if pipeline.checkpoint_sha256 is None:
        pipeline.checkpoint_sha256 = file_sha256(pipeline.checkpoint)
    return {
        **asdict(pipeline),
        "checkpoint": portable(pipeline.checkpoint),
        "lora": pipeline.lora and portable(in_project(pipeline.lora)),
        "sampler": word_of(sampler, SAMPLERS),
        "sampling_steps": sampler.num_steps,
        "guidance_interval": None if sampler.guider.interval == EVERY_SIGMA else list(sampler.guider.interval),
        "amp_level": "O2" if str(pipeline.engine.network.dtype).lower() == "float16" else "O0",
    }


def word_of(part: Any, table: Mapping[str, type]) -> Optional[str]:
    """A flag's word for a part of the sampler, None for one that no word stands for: the model's own."""
    return next((word for word, kind in table.items() if type(part) is kind), None)


def require_finite(values: np.ndarray, what: str, flag: str) -> np.ndarray:
    """The values themselves.

    Raises:
        UserError: some are not finite numbers.
    """
    if not np.isfinite(values).all():
        raise UserError(
            f"the {what} are not finite numbers: the weights or the LoRA ({flag}checkpoint, {flag}lora) hold NaN or "
            f"infinite values, or fp16 overflowed, which {flag}amp_level=O0 (fp32) avoids"
        )
    return values
