"""What the pipelines of pictures and of videos have in common: their weights, and results that have to be finite."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gm.errors import UserError
from gm.options import WeightOptions

if TYPE_CHECKING:  # MindSpore is imported when an engine is built
    from gm.model import DiffusionEngine


def load_weights(engine: "DiffusionEngine", checkpoint: Path, options: WeightOptions, flag: str) -> None:
    """Attaches an engine to its checkpoint, with the LoRA merged into it, and loads what is not loaded part by part.

    Args:
        flag: what the command's flags of this model start with, for error lines.

    Raises:
        UserError: no such file, or one that does not fit.
    """
    from gm.networks.precision import amp_dtype
    from gm.weights.lora_file import MergedSource, read_lora

    if options.lora is not None:
        overlay = partial(MergedSource, lora=read_lora(options.lora), scale=options.lora_scale)
        engine.network.overlay = engine.conditioner.overlay = overlay
    if not checkpoint.exists():
        raise UserError(f"{flag}checkpoint: there is no file {checkpoint}; name the weights (README, Weights)")
    engine.attach(checkpoint, amp_dtype(options.amp_level), options.offload)
    engine.load()


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
