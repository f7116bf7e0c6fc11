"""A jsonargparse parser whose complaints are one line each, naming the flag, the value and what is expected."""

import difflib
import inspect
import json
import os
import re
import sys
from contextlib import suppress
from dataclasses import fields
from typing import Any, Callable, Dict, List, Mapping, NoReturn, Optional, Sequence, Set, Type, TypeVar, get_args

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings
from yaml import YAMLError

from gm.config.factory import LOADER, yaml_text
from gm.config.values import Options, describe, expect, flags_below, kinds_of, show
from gm.errors import UserError
from gm.files import FilePath

Group = TypeVar("Group", bound=Options)
# What other tools call an option: named where a user gives it.
OTHER_WORDS = {
    "augmentation_level": "noise_aug_strength",
    "cfg": "max_cfg",
    "cond_aug": "noise_aug_strength",
    "decoding_t": "decode_chunk_size",
    "fps_id": "fps",
    "guidance_scale": "max_cfg",
    "max_guidance_scale": "max_cfg",
    "min_guidance_scale": "min_cfg",
    "num_inference_steps": "sampling_steps",
    "num_steps": "sampling_steps",
    "scheduler": "schedule",
    "video_frames": "num_frames",
}
LARGEST = 2**64 - 1  # of any number, up or down; infinite ones and those that are none are refused, too


class CommandParser(ArgumentParser):
    """Parses flags and their YAML (`--config`); full names only, so that a typing error is never taken for a flag.

    A yes/no flag may stand alone, and a list needs no brackets: `--SVD.offload --SVD.crop_offset=0.2,0.5`. Values are
    checked against the types and ranges of their flags and groups (:mod:`gm.config.values`). A `~` that starts the
    value of a path flag (:data:`gm.files.FilePath`) is the home folder, on the command line and in YAML.

    Args:
        settings_in: gives the flags that a file named as `--config` holds where it is no YAML, None where it is.
        kwargs: of jsonargparse's parser.

    Raises:
        UserError: from every parsing method, in place of printing the usage and exiting.
    """

    def __init__(self, settings_in: Callable[[Any], Optional[Mapping]] = lambda path: None, **kwargs: Any) -> None:
        set_parsing_settings(docstring_parse_attribute_docstrings=True)
        super().__init__(allow_abbrev=False, **kwargs)
        self._options: Dict[str, Type[Options]] = {}
        self._settings_in = settings_in

    def add_options(self, group: Type[Options], prefix: str) -> None:
        """A flag `--prefix.name` for each field of a group; the help is the text below the field."""
        self.add_class_arguments(group, prefix)
        self._options[prefix] = group

    def add_class_arguments(self, theclass: type, nested_key: str, **kwargs: Any) -> List[str]:
        """A flag for each argument of a class; none for all of them, whose value could name other files and classes."""
        group = self.add_argument_group(inspect.getdoc(theclass).partition("\n")[0].rstrip("."))
        return group.add_class_arguments(theclass, nested_key, as_group=False, **kwargs)

    def parse_args(self, args: Optional[Sequence[str]] = None, *rest: Any, **kwargs: Any) -> Namespace:
        """The flags' values; `args` defaults to the process's arguments."""
        args = self._completed(sys.argv[1:] if args is None else args)
        try:
            flags = super().parse_args(args, *rest, **kwargs)
        except ValueError as error:  # a number of thousands of digits in a group's file
            self.error(str(error), error)
        for name, annotation in self._types().items():
            if name not in flags:  # a YAML file gives a group one value, or none
                above, _, last = name.rpartition(".")
                raise UserError(f"--{above}: expected its flags by name, such as {last}, in the YAML file")
            if isinstance(flags[name], str) and FilePath in (annotation, *get_args(annotation)):
                flags[name] = os.path.expanduser(flags[name])
            with flags_below("--"):
                expect(name, flags[name], annotation)
        for prefix, group in self._options.items():
            read_group(group, flags, prefix)
        for key, value in flags.items():
            for number in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(number, (int, float)) and not abs(number) <= LARGEST:
                    raise UserError(f"--{key}: {show(value)} cannot be used; expected a number within {LARGEST:g}")
        return flags

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Namespace:
        """A file's flags; it is looked at first, so that none is opened that cannot be built."""
        path = os.path.expanduser(path)
        settings = self._settings_in(path)
        content = settings
        if settings is None:
            with suppress(YAMLError):  # which is explained when it is read
                content = yaml.load(yaml_text(path, "--config"), Loader=LOADER)
        if isinstance(content, Mapping) and "config" in content:
            raise UserError(f"--config: {path} names another file as `config`; give both on the command line")
        if settings is not None:
            return self.parse_string(json.dumps(settings), *args, **kwargs)
        return super().parse_path(path, *args, **kwargs)

    def error(self, message: str, ex: Optional[Exception] = None) -> NoReturn:
        """Raises a UserError in place of argparse's usage text."""
        raise UserError(explain_usage_error(message, self._types())) from ex

    def _types(self) -> Dict[str, Any]:
        """The annotated type of each flag."""
        hints = {action.dest: getattr(action, "_typehint", None) for action in self._actions}
        return {name: hints.get(name, Any) for name, _ in self.get_defaults().items()}

    def _completed(self, args: Sequence[str]) -> List[str]:
        """Gives `=true` to each yes/no flag that no value follows, and brackets to each list without."""
        kinds = {f"--{name}": kinds_of(annotation) for name, annotation in self._types().items()}
        completed = []
        for arg, before, after in zip(args, ["", *args], [*args[1:], "--"]):
            name, given, value = arg.partition("=")
            if bool in kinds.get(arg, set()) and after.startswith("--"):
                arg = f"{arg}=true"
            elif given and _is_bare_list(value, kinds.get(name, set())):
                arg = f"{name}=[{value}]"
            elif _is_bare_list(arg, kinds.get(before, set())):
                arg = f"[{arg}]"
            completed.append(arg)
        return completed


def _is_bare_list(value: str, kinds: Set[Any]) -> bool:
    return bool({tuple, list} & kinds) and "," in value and value[:1] not in ("[", "{")


def read_group(group: Type[Group], flags: Namespace, prefix: str) -> Group:
    """A group of options with the values of the flags `--prefix.name`.

    Raises:
        UserError: values that the group cannot have.
    """
    with flags_below(f"--{prefix}."):
        return group(**{item.name: flags[prefix][item.name] for item in fields(group)})


def explain_usage_error(message: str, types: Mapping[str, Any]) -> str:
    """Rewrites a message of argparse or jsonargparse as one line in plain words.

    Args:
        message: the message, any number of lines; one of an unknown kind is only brought onto one line.
        types: all flags there are, without their dashes, and the types of their values.
    """
    text = " ".join(message.split())
    value_error = re.match(r'Parser key "([\w.]+)": (?:.*(?:Given value|Got value): ?(.*))?', text)
    if value_error and types.get(value_error.group(1)) not in (None, Any):
        name, value = value_error.groups()
        given = "that value" if value is None else show(value)
        return f"--{name}: {given} cannot be used; expected {describe(types[name])}"
    unknown = re.match(r"unrecognized arguments: ([^\s=]+)", text)
    if unknown:
        return _explain_unknown(unknown.group(1), types, "")
    unknown_key = re.match(r"(?:Group '([\w.]+)' does not accept option|Option) '([\w.]+)'", text)
    if unknown_key:
        return _explain_unknown("--" + ".".join(filter(None, unknown_key.groups())), types, " in the YAML file")
    missing = re.match(r"the following arguments are required: (.*)", text)
    if missing:
        names = ", ".join(f"--{name}" for name in missing.group(1).split(", "))
        return f"{names} must be given; --help explains each flag"
    text = re.sub(r'^Parser key "([\w.]+)":', r"--\1:", text)
    return re.sub(r"^argument (--[\w.]+):", r"\1:", text)


def _explain_unknown(name: str, types: Mapping[str, Any], where: str) -> str:
    if not name.startswith("-"):
        return f"unexpected argument {name}; each value follows its flag, see --help"
    flags = [f"--{flag}" for flag in types]
    last = name.rpartition(".")[2].lstrip("-").replace("-", "_")
    ends = {flag: flag.rpartition(".")[2].lstrip("-") for flag in flags}
    named = [flag for flag, end in ends.items() if end == OTHER_WORDS.get(last, last)]
    longer = [flag for flag, end in ends.items() if flag.startswith(name) or end.endswith(f"_{last}")]
    close = named or longer or difflib.get_close_matches(name, flags, n=1)
    hint = f"did you mean {close[0]}?" if close else "see --help"
    return f"unknown flag {name}{where}; {hint}"
