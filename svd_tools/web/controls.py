"""Controls made from the options' declaration: the type, range, default and help of each field."""

from dataclasses import fields
from typing import (
    Annotated,
    Any,
    Callable,
    Dict,
    List,
    Literal,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    Type,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import gradio as gr

from gm.config.command_parser import CommandParser
from gm.config.values import OptionError, Options, Range, expect, show
from svd_tools.web.making import Weights
from svd_tools.web.models import Found, Model

LABELS = {"motion_bucket_id": "Motion bucket", "fps": "Frames per second", "noise_aug_strength": "Noise augmentation",
          "num_frames": "Frames", "sampling_steps": "Steps", "min_cfg": "Lowest guidance scale",
          "max_cfg": "Highest guidance scale", "cfg": "Guidance scale", "guidance_interval": "Guided sigmas",
          "lora": "LoRA", "lora_scale": "LoRA scale", "lora_alpha": "LoRA alpha", "amp_level": "Precision"}  # fmt: skip
ITEMS = {"crop_offset": ("Crop, down", "Crop, across")}  # a control for each
MOST_SLIDER_STEPS = 256  # of a range that a slider is good for
FINE = 0.01  # step of a number that need not be whole
NO_LORA = "none"


class Control(NamedTuple):
    """One component for an option, or for one item of an option that is a pair."""

    name: str
    index: Optional[int]
    component: Any


class Panel:
    """The controls of a group of options.

    Args:
        group: the options.
        prefix: of the components' ids, behind "option-".
    """

    def __init__(self, group: Type[Options], prefix: str = "") -> None:
        self.group, self.prefix = group, prefix
        self.hints = get_type_hints(group, include_extras=True)
        self.defaults = {item.name: item.default for item in fields(group)}
        self.helps = option_help(group)
        self.controls: List[Control] = []

    def __getitem__(self, key: Tuple[str, Optional[int]]) -> Any:
        """The component of an option's name and, of a pair, its item."""
        return next(control.component for control in self.controls if (control.name, control.index) == key)

    @property
    def components(self) -> List[Any]:
        """All, in the order in which they were added."""
        return [control.component for control in self.controls]

    @property
    def names(self) -> List[str]:
        """The options that have controls."""
        return list(dict.fromkeys(control.name for control in self.controls))

    def add(self, names: Sequence[str], values: Mapping[str, Any], loras: Sequence[str] = ()) -> None:
        """Components for some options, put where the page is being built.

        Args:
            names: of the options.
            values: the model's, in place of the declared defaults.
            loras: titles to choose from.
        """
        for name in names:
            value, annotation = values.get(name, self.defaults[name]), self.hints[name]
            if name not in ITEMS:
                label = LABELS.get(name, name.replace("_", " ").capitalize())
                component = self._component(name, annotation, value, label, self.helps[name], loras)
                self.controls.append(Control(name, None, component))
            for index, label in enumerate(ITEMS.get(name, ())):
                info = "" if index else self.helps[name]
                component = self._component(f"{name}-{index}", get_args(annotation)[index], value[index], label, info)
                self.controls.append(Control(name, index, component))

    def chosen(self, values: Sequence[Any]) -> Dict[Tuple[str, Optional[int]], Any]:
        """(name, index) -> what the components hold."""
        return {(control.name, control.index): value for control, value in zip(self.controls, values)}

    def options(self, values: Sequence[Any], found: Found) -> Dict[str, Any]:
        """What the components hold, as options; an empty number is the default.

        Raises:
            OptionError: what is no number, or a LoRA that is not there any more.
        """
        options: Dict[str, Any] = {}
        for control, value in zip(self.controls, values):
            value = None if value == "" else value
            if control.name == "lora":
                value = _path_of(value, found)
            elif value is not None and isinstance(control.component, gr.Textbox):
                value = _numbers(control.name, value)
            if isinstance(value, float) and value.is_integer() and _whole(self.hints[control.name]):
                value = int(value)
            if control.index is not None:
                value = (*options.get(control.name, ()), value)
            options[control.name] = value
        return {name: self.defaults[name] if value is None else value for name, value in options.items()}

    def check(
        self, values: Sequence[Any], found: Found, also: Callable[[Mapping[str, Any]], None]
    ) -> Tuple[str, str]:
        """(the option that cannot be so, why): empty where all go together, for `also` too."""
        try:
            options = self.options(values, found)
            for name, value in options.items():
                expect(name, value, self.hints[name])
            also(options)
        except OptionError as error:
            name, _, line = str(error).partition(": ")
            return name, line
        return "", ""

    def request(self, values: Sequence[Any], found: Found, model: Model) -> Tuple[Weights, Dict[str, Any]]:
        """The model as it is to be loaded, and the other options.

        Raises:
            OptionError: something cannot be so.
        """
        name, line = self.check(values, found, model.check)
        if line:
            raise OptionError(f"{name}: {line}")
        options = self.options(values, found)
        loaded_with = {name: options.pop(name) for name in Weights._fields if name in options}
        return Weights(str(model.known.path), str(model.checkpoint), **loaded_with), options

    def explain(self, right: str, wrong: str, line: str) -> Dict[Any, Any]:
        """Updates: below the control of the option `wrong` stands why; below that of `right`, its help again."""
        updates = {}
        for control in self.controls:
            if control.name == right:
                updates[control.component] = gr.update(info=control.component.info, elem_classes=[])
        for control in self.controls:
            if control.name == wrong and not control.index:
                updates[control.component] = gr.update(info=f"⚠ {line}", elem_classes=["wrong"])
        return updates

    def values(self, options: Mapping[str, Any], found: Found) -> List[Any]:
        """Updates of all components, for some options; the rest is left as it is."""
        updates = []
        for control in self.controls:
            value = options.get(control.name)
            if control.name not in options:
                updates.append(gr.skip())
                continue
            if control.name == "lora":
                value = next((title for title, path in found.loras.items() if str(path) == value), NO_LORA)
            elif control.index is not None:
                value = value[control.index]
            elif isinstance(control.component, gr.Textbox):
                numbers = value if isinstance(value, (tuple, list)) else [value]
                value = ", ".join(show(number) for number in numbers if number is not None)
            updates.append(gr.update(value=value))
        return updates

    def _component(
        self, name: str, annotation: Any, value: Any, label: str, info: str, loras: Sequence[str] = ()
    ) -> Any:
        common = {"label": label, "info": info or None, "elem_id": f"option-{self.prefix}{name}"}
        choices, limits, whole = _choices(annotation), _limits(annotation), _whole(annotation)
        if name == "lora":
            return gr.Dropdown([NO_LORA, *loras], value=NO_LORA, **common)
        if choices:
            choices = choices if value is not None else [("default", ""), *choices]
            return gr.Dropdown(choices, value=value or "", **common)
        if annotation is bool:
            return gr.Checkbox(value=value, **common)
        if limits is None or value is None:  # a number's component has no way to be empty
            amount = "a number" if limits else "two numbers"
            return gr.Textbox(placeholder=f"{amount}, or none", **common)
        step = limits.multiple or 1 if whole else FINE
        if get_origin(annotation) is Annotated and limits.high - limits.low < MOST_SLIDER_STEPS * step:
            return gr.Slider(limits.low, limits.high, value=value, step=step, **common)
        common["info"] = f"{info.rstrip('.')} ({limits})." if info else f"{limits}"
        return gr.Number(value=value, step=step, precision=0 if whole else None, **common)


def option_help(group: Type[Options]) -> Dict[str, str]:
    """The text below each field of a group, as the commands' --help shows it."""
    parser = CommandParser()
    parser.add_options(group, "x")
    texts = {action.dest.partition(".")[2]: " ".join((action.help or "").split()) for action in parser._actions}
    return {item.name: f"{texts[item.name][:1].upper()}{texts[item.name][1:]}." for item in fields(group)}


def _parts(annotation: Any) -> List[Any]:
    """The types that a union holds, or the type itself."""
    return list(get_args(annotation)) if get_origin(annotation) is Union else [annotation]


def _choices(annotation: Any) -> List[str]:
    literal = next((part for part in _parts(annotation) if get_origin(part) is Literal), None)
    return [] if literal is None or _limits(annotation) else list(get_args(literal))


def _limits(annotation: Any) -> Optional[Range]:
    limits = [item for part in _parts(annotation) for item in get_args(part) if isinstance(item, Range)]
    return limits[0] if limits else None


def _whole(annotation: Any) -> bool:
    return any(get_origin(part) is Annotated and get_args(part)[0] is int for part in _parts(annotation))


def _numbers(name: str, text: str) -> Union[None, float, Tuple[float, ...]]:
    """The number in a text, or the numbers if there are more, None without any."""
    try:
        numbers = tuple(float(part) for part in text.strip(" []").split(",") if part.strip())
    except ValueError as error:
        raise OptionError(f"{name}: {show(text)} cannot be used; expected numbers, such as 0.5, 100") from error
    return numbers if len(numbers) > 1 else next(iter(numbers), None)


def _path_of(title: Optional[str], found: Found) -> Optional[str]:
    if title in (None, NO_LORA):
        return None
    if title not in found.loras:
        raise OptionError(f"lora: {title} is not there any more; load the page again")
    return str(found.loras[title])
