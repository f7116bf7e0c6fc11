"""The models and LoRAs found in a folder, and what each model's YAML file says of its videos."""

import logging
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Sequence, Tuple

from gm.config.factory import instantiate
from gm.config.values import OptionError, expect
from gm.errors import UserError
from gm.options import PictureOptions
from gm.pipeline import word_of
from gm.sampling.samplers import SAMPLERS
from gm.sampling.schedules import SCHEDULES
from gm.weights.checkpoint import open_checkpoint
from gm.weights.model_kind import CONFIGS, KnownModel, architecture_of, find_model, known_models
from modules.options import VideoOptions, choose_sampler
from modules.video_guidance import GUIDERS

LORA = "lora"  # in the names of its tensors, whoever wrote it
SUFFIXES = (".safetensors", ".ckpt")
MOST_FILES = 1000

logger = logging.getLogger(__name__)


class Model(NamedTuple):
    """A checkpoint and the YAML file that it belongs to."""

    checkpoint: Path
    known: KnownModel

    @property
    def makes_videos(self) -> bool:
        """Whether it has temporal layers; else it makes pictures of words."""
        return bool(self.known.architecture.temporal)

    def defaults(self) -> Dict[str, Any]:
        """Option -> the model's value, for those options that the YAML file settles."""
        params, sampler = self.known.config["model"].get("params", {}), self._sampler()
        low, high = sampler.guider.min_scale, sampler.guider.max_scale
        values = {name: params[name] for name in ("num_frames", "height", "width") if name in params}
        values.update(sampling_steps=sampler.num_steps, sampler=word_of(sampler, SAMPLERS))
        if not self.makes_videos:
            return {**values, "cfg": high}
        schedule = word_of(sampler.discretization, SCHEDULES)
        guider = word_of(sampler.guider, GUIDERS)
        return {**values, "schedule": schedule, "guider": guider, "min_cfg": low, "max_cfg": high}

    def check(self, options: Mapping[str, Any]) -> None:
        """Raises an OptionError if what this model makes cannot have these options."""
        if self.makes_videos:
            choose_sampler(self._sampler(), VideoOptions(**options))
        else:
            PictureOptions(**options)

    def _sampler(self) -> Any:
        """A new sampler as the YAML file describes it."""
        params = self.known.config["model"]["params"]
        return instantiate(params.get("sampler_config") or params["sampler"])


class Found(NamedTuple):
    """What is in a folder, each by a short title: models of videos and of pictures, LoRAs, and files of no such kind
    with what they are."""

    videos: Dict[str, Model]
    pictures: Dict[str, Model]
    loras: Dict[str, Path]
    others: Dict[str, str]

    def problem(self, title: str) -> str:
        """Why a title stands for no model."""
        gone = f"{title or 'the model'} is not there; choose another one, or load the page again"
        return self.others.get(title, gone)

    def title_of(self, stored: Mapping[str, Any]) -> str:
        """The model that made a video, by the names in its settings; "" if it is not there."""
        checkpoint, config = (Path(str(stored.get(name))).name for name in ("checkpoint", "config"))
        of_name = [title for title, model in self.videos.items() if model.checkpoint.name == checkpoint]
        of_both = [title for title in of_name if self.videos[title].known.path.name == config]
        return next(iter(of_both or of_name), "")


def find_files(folder: Path) -> Found:
    """Looks through a folder, and the folders in it, for files of weights; only their headers are read."""
    found = Found({}, {}, {}, {})
    for path in _weights_below(folder):
        title = path.relative_to(folder).as_posix()
        status = path.stat()
        is_lora, known, problem = _looked_at(path, folder, status.st_mtime_ns, status.st_size)
        if is_lora:
            found.loras[title] = path
        for model in (Model(path, each) for each in known):
            models = found.videos if model.makes_videos else found.pictures
            models[title if len(known) == 1 else f"{title} as {model.known.name}"] = model
        if problem:
            found.others[title] = problem
    return found


def options_in(
    stored: Mapping[str, Any], names: Sequence[str], hints: Mapping[str, Any], found: Found
) -> Tuple[Dict[str, Any], List[str]]:
    """The options in a video's settings.

    Args:
        stored: the settings' part of the options.
        names, hints: the options looked for, and their types.

    Returns:
        Option -> value; what could not be taken over.
    """
    options, problems = {}, []
    for name in (name for name in names if name in stored):
        value = stored[name]
        if name == "lora" and value is not None:
            value = next((str(path) for path in found.loras.values() if path.name == Path(str(value)).name), None)
            if value is None:
                problems.append(f"its LoRA {stored[name]} is not among the files here")
        elif isinstance(value, list):
            value = tuple(value)
        try:
            expect(name, value, hints[name])
            options[name] = value
        except OptionError as error:
            problems.append(str(error))
    return options, problems


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
        if any(LORA in name for name in source.info):
            return True, [], ""
        have = architecture_of(source.info)
        models = [*_described_in(folder), *_described_in(CONFIGS)]
        fitting = [model for model in models if have.model_channels and model.architecture.fits(have)]
        try:
            return False, fitting if len(fitting) == 1 else [find_model(source)], ""
        except UserError as error:
            return False, fitting, "" if fitting else str(error)
    finally:
        source.close()


def _described_in(folder: Path) -> Sequence[KnownModel]:
    """The models that YAML files in a folder describe."""
    return _read_models(folder, *sorted((path, path.stat().st_mtime_ns) for path in folder.glob("*.yaml")))


@lru_cache(maxsize=8)
def _read_models(folder: Path, *_: Tuple[Path, int]) -> Sequence[KnownModel]:
    try:
        return known_models(folder)
    except UserError as error:
        logger.warning("the YAML files in %s are left out: %s", folder, error)
        return []
