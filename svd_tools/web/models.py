"""The models and LoRAs found in a folder, and what each model's YAML file says of its videos."""

import logging
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

from gm.config.factory import instantiate
from gm.errors import UserError
from gm.sampling.samplers import SAMPLERS
from gm.sampling.schedules import SCHEDULES
from gm.weights.checkpoint import open_checkpoint
from gm.weights.lora_file import is_lora_name
from gm.weights.model_kind import KnownModel, architecture_of, find_model, known_models
from modules.options import VideoOptions, choose_sampler
from modules.video_guidance import GUIDERS

SUFFIXES = (".safetensors", ".ckpt")
MOST_FILES = 1000

logger = logging.getLogger(__name__)


class Model(NamedTuple):
    """A checkpoint and the YAML file that it belongs to."""

    checkpoint: Path
    known: KnownModel

    def defaults(self) -> Dict[str, Any]:
        """Option -> the model's value, for those options of a video that the YAML file settles."""
        params = self.known.config["model"].get("params", {})
        sampler = self._sampler()
        values = {name: params[name] for name in ("num_frames", "height", "width") if name in params}
        return {
            **values,
            "sampling_steps": sampler.num_steps,
            "sampler": word_of(SAMPLERS, type(sampler)),
            "schedule": word_of(SCHEDULES, type(sampler.discretization)),
            "guider": word_of(GUIDERS, type(sampler.guider)),
            "min_cfg": sampler.guider.min_scale,
            "max_cfg": sampler.guider.max_scale,
        }

    def check(self, options: Mapping[str, Any]) -> None:
        """Raises an OptionError if a video of this model cannot have these options."""
        choose_sampler(self._sampler(), VideoOptions(**options))

    def _sampler(self) -> Any:
        """A new sampler as the YAML file describes it."""
        params = self.known.config["model"]["params"]
        return instantiate(params.get("sampler_config") or params["sampler"])


class Found(NamedTuple):
    """What is in a folder, each by a short title: models, LoRAs, and files of neither kind with what they are."""

    models: Dict[str, Model]
    loras: Dict[str, Path]
    others: Dict[str, str]


def find_files(folder: Path) -> Found:
    """Looks through a folder, and the folders in it, for files of weights; only their headers are read."""
    found = Found({}, {}, {})
    for path in _weights_below(folder):
        title = path.relative_to(folder).as_posix()
        status = path.stat()
        is_lora, models, problem = _looked_at(path, folder, status.st_mtime_ns, status.st_size)
        if is_lora:
            found.loras[title] = path
        for model in models:
            found.models[title if len(models) == 1 else f"{title} as {model.name}"] = Model(path, model)
        if problem:
            found.others[title] = problem
    return found


def word_of(table: Mapping[str, Any], kind: Any) -> Optional[str]:
    """The word that a table has for a class, or for a class's name; a word of the table is itself."""
    name = kind if isinstance(kind, str) else kind.__name__
    return next((word for word, cls in table.items() if name in (word, cls.__name__)), None)


def _weights_below(folder: Path) -> List[Path]:
    paths = []
    for path in folder.rglob("*"):
        visible = not any(part.startswith(".") for part in path.relative_to(folder).parts)
        if visible and path.suffix.lower() in SUFFIXES and path.is_file():
            paths.append(path)
        if len(paths) == MOST_FILES:
            logger.warning("%s holds more than %d files of weights; the others are left out", folder, MOST_FILES)
            break
    return sorted(paths)


@lru_cache(maxsize=MOST_FILES)
def _looked_at(path: Path, folder: Path, *_: int) -> Tuple[bool, List[KnownModel], str]:
    """(whether it is a LoRA, the models that it may be of, what it is instead)."""
    try:
        source = open_checkpoint(path)
    except UserError as error:
        return False, [], str(error)
    try:
        if any(map(is_lora_name, source.info)):
            return True, [], ""
        have = architecture_of(source.info)
        models = [*_described_in(folder), *known_models()]
        fitting = [model for model in models if have.model_channels and model.architecture.fits(have)]
        try:
            return False, fitting if len(fitting) == 1 else [find_model(source)], ""
        except UserError as error:
            return False, fitting, "" if fitting else str(error)
    finally:
        source.close()


def _described_in(folder: Path) -> List[KnownModel]:
    """The models that YAML files in the folder describe, beside those of configs/."""
    try:
        return known_models(folder)
    except UserError as error:
        logger.warning("the YAML files in %s are left out: %s", folder, error)
        return []
