"""The page's controls, made from the options' declaration: type, range, default and help of each field."""

from dataclasses import fields
from typing import (
    Annotated,
    Any,
    Dict,
    List,
    Literal,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import gradio as gr

from gm.config.command_parser import CommandParser
from gm.config.values import OptionError, Range, expect, show
from gm.errors import UserError
from gm.sampling.samplers import SAMPLERS
from gm.sampling.schedules import SCHEDULES
from modules.options import VideoOptions
from modules.video_guidance import GUIDERS
from svd_tools.web.models import Found, Model, word_of

BASIC = ("motion_bucket_id", "fps", "num_frames", "sampling_steps", "noise_aug_strength")
CROP = ("crop_offset",)
MORE = ("sampler", "schedule", "guider", "min_cfg", "max_cfg", "guidance_interval", "height", "width",
        "decode_chunk_size", "tile_size", "feature_cache", "offload", "lora", "lora_scale", "amp_level")  # fmt: skip
LABELS = {"motion_bucket_id": "Motion bucket", "fps": "Frames per second", "noise_aug_strength": "Noise augmentation",
          "num_frames": "Frames", "sampling_steps": "Steps", "min_cfg": "Lowest guidance scale",
          "max_cfg": "Highest guidance scale", "lora": "LoRA", "lora_scale": "LoRA scale",
          "guidance_interval": "Guided sigmas", "amp_level": "Precision"}  # fmt: skip
ITEMS = {"crop_offset": ("Crop, down", "Crop, across")}
TABLES = {"sampler": SAMPLERS, "schedule": SCHEDULES, "guider": GUIDERS}
MOST_SLIDER_STEPS = 256  # of a range that a slider is good for
FINE = 0.01  # step of a number that need not be whole
NO_LORA = "none"
HINTS = get_type_hints(VideoOptions, include_extras=True)
DEFAULTS = {item.name: item.default for item in fields(VideoOptions)}


class Control(NamedTuple):
    """One component for an option, or for one item of an option that is a pair."""

    name: str
    index: Optional[int]
    component: Any


def make_controls(names: Sequence[str], values: Mapping[str, Any], loras: Sequence[str]) -> List[Control]:
    """Components for some options, made where the page is being built.

    Args:
        names: of the options.
        values: the model's, in place of the declared defaults.
        loras: titles to choose from.
    """
    helps = option_help()
    controls = []
    for name in names:
        value, annotation = values.get(name, DEFAULTS[name]), HINTS[name]
        for index, label in enumerate(ITEMS.get(name, [LABELS.get(name, name.replace("_", " ").capitalize())])):
            pair = name in ITEMS
            info = helps[name] if index == 0 else ""
            item = value[index] if pair else value
            component = _component(name, get_args(annotation)[0] if pair else annotation, item, label, info, loras)
            controls.append(Control(name, index if pair else None, component))
    return controls


def option_help() -> Dict[str, str]:
    """The text below each field, as the commands' --help shows it."""
    parser = CommandParser()
    parser.add_options(VideoOptions, "SVD")
    texts = {action.dest.partition(".")[2]: action.help or "" for action in parser._actions}
    return {name: _sentence(" ".join(texts[name].split())) for name in DEFAULTS}


def to_options(controls: Sequence[Control], values: Sequence[Any], found: Found) -> Dict[str, Any]:
    """What the controls say, as options; an empty number is the default.

    Raises:
        OptionError: what is no pair of numbers, or a LoRA that is not there any more.
    """
    options: Dict[str, Any] = {}
    for control, value in zip(controls, values):
        if control.name == "lora":
            value = _path_of(value, found)
        elif value is not None and _whole(HINTS[control.name]):
            value = int(value)
        elif control.index is not None:
            value = (*options.get(control.name, ()), value)
        elif isinstance(control.component, gr.Textbox):
            value = _pair(control.name, value)
        options[control.name] = value
    return {name: DEFAULTS[name] if value is None else value for name, value in options.items()}


def check(controls: Sequence[Control], values: Sequence[Any], model: Model, found: Found) -> Tuple[str, str]:
    """(the option that cannot be so, why): empty where all go together."""
    try:
        options = to_options(controls, values, found)
        for name, value in options.items():
            expect(name, value, HINTS[name])
        model.check(options)
    except OptionError as error:
        name, _, line = str(error).partition(": ")
        return name, line
    return "", ""


def from_settings(settings: Mapping[str, Any], found: Found) -> Tuple[Dict[str, Any], str, List[str]]:
    """The options in a video's settings.

    Args:
        settings: what :func:`data.video_writer.read_metadata` gives.

    Returns:
        Option -> value; the model's title, "" where it is not found; what could not be taken over.

    Raises:
        UserError: they are of no video of this toolkit's.
    """
    stored = settings.get("SVD")
    if not isinstance(stored, Mapping):
        raise UserError("its settings are of another kind than a video's")
    options, problems = {}, []
    for name in (*BASIC, *CROP, *MORE):
        value = stored.get(name, DEFAULTS[name])
        if name in TABLES and value is not None:
            value = word_of(TABLES[name], str(value))
        if name == "lora" and value is not None:
            value = next((title for title, path in found.loras.items() if path.name == value), None)
            if value is None:
                problems.append(f"its LoRA {stored[name]} is not among the files here")
        elif isinstance(value, list):
            value = tuple(value)
        try:
            expect(name, value, HINTS[name])
            options[name] = value
        except OptionError as error:
            problems.append(str(error))
    names = (str(stored.get("checkpoint")).rpartition("/")[2], str(stored.get("config")).rpartition("/")[2])
    of_name = [title for title, model in found.models.items() if model.checkpoint.name == names[0]]
    of_both = [title for title in of_name if found.models[title].known.path.name == names[1]]
    title = next(iter(of_both or of_name), "")
    if not title:
        problems.append(f"its model {names[0]} is not among the files here")
    return options, title, problems


def to_values(controls: Sequence[Control], options: Mapping[str, Any]) -> List[Any]:
    """What the controls show for some options; the rest is left as it is."""
    values = []
    for control in controls:
        if control.name not in options:
            values.append(gr.skip())
            continue
        value = options[control.name]
        if control.name == "lora":
            value = value or NO_LORA
        elif control.index is not None:
            value = value[control.index]
        elif isinstance(control.component, gr.Textbox):
            value = ", ".join(map(show, value or ()))
        values.append(gr.update(value=value))
    return values


def _component(name: str, annotation: Any, value: Any, label: str, info: str, loras: Sequence[str]) -> Any:
    place = f"-{ITEMS[name].index(label)}" if name in ITEMS else ""
    common = {"label": label, "info": info or None, "elem_id": f"option-{name}{place}"}
    choices = _choices(annotation)
    if name == "lora":
        return gr.Dropdown([NO_LORA, *loras], value=NO_LORA, **common)
    if choices:
        return gr.Dropdown(choices, value=value or choices[0], **common)
    if annotation is bool:
        return gr.Checkbox(value=value, **common)
    if value is None:
        return gr.Textbox(placeholder="two numbers, or none", **common)
    limits, whole = _limits(annotation), _whole(annotation)
    step = limits.multiple or 1 if whole else FINE
    if get_origin(annotation) is Annotated and limits.high - limits.low < MOST_SLIDER_STEPS * step:
        return gr.Slider(limits.low, limits.high, value=value, step=step, **common)
    common["info"] = f"{info.rstrip('.')} ({limits})." if info else f"{limits}"
    return gr.Number(value=value, step=step, precision=0 if whole else None, **common)


def _parts(annotation: Any) -> List[Any]:
    """The types that a union holds, or the type itself."""
    return list(get_args(annotation)) if get_origin(annotation) is Union else [annotation]


def _choices(annotation: Any) -> List[str]:
    literal = next((part for part in _parts(annotation) if get_origin(part) is Literal), None)
    return [] if literal is None or _limits(annotation) else list(get_args(literal))


def _limits(annotation: Any) -> Optional[Range]:
    numbers = [part for part in _parts(annotation) if get_origin(part) is Annotated]
    return get_args(numbers[0])[1] if numbers else None


def _whole(annotation: Any) -> bool:
    return any(get_origin(part) is Annotated and get_args(part)[0] is int for part in _parts(annotation))


def _pair(name: str, text: Optional[str]) -> Optional[Tuple[float, ...]]:
    """The numbers in a text, None without any."""
    try:
        return tuple(float(part) for part in (text or "").strip(" []").split(",") if part.strip()) or None
    except ValueError as error:
        raise OptionError(f"{name}: {show(text)} cannot be used; expected two numbers, such as 0.5, 100") from error


def _path_of(title: Optional[str], found: Found) -> Optional[str]:
    if title in (None, NO_LORA):
        return None
    if title not in found.loras:
        raise OptionError(f"lora: {title} is not there any more; reload the page")
    return str(found.loras[title])


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
