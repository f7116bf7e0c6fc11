"""A jsonargparse parser whose complaints are one line each, naming the flag, the value and what is expected."""

import difflib
import re
import sys
from typing import Any, List, NoReturn, Optional, Sequence

from jsonargparse import ArgumentParser, Namespace

from gm.errors import UserError

# What a user calls the types that jsonargparse's messages name.
TYPE_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "tuple": "a list such as [0.5,0.5]",
    "list": "a list such as [1,2]",
}
LARGEST = 2**63 - 1  # of any number, up or down; also not a number and infinite ones are refused


class CommandParser(ArgumentParser):
    """Parses flags and their YAML (`--config`); full names only, so that a typing error is never taken for a flag.

    A yes/no flag may stand alone: `--SVD.offload` is `--SVD.offload=true`.

    Raises:
        UserError: from every parsing method, in place of printing the usage and exiting.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def parse_args(self, args: Optional[Sequence[str]] = None, *rest: Any, **kwargs: Any) -> Namespace:
        """The flags' values; `args` defaults to the process's arguments."""
        values = super().parse_args(self._complete_switches(sys.argv[1:] if args is None else args), *rest, **kwargs)
        for key, value in values.items():
            for number in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(number, (int, float)) and not abs(number) <= LARGEST:
                    raise UserError(f"--{key}: {value} cannot be used; expected a number within {LARGEST:g}")
        return values

    def set_defaults(self, *args: Any, **kwargs: Any) -> None:
        """Sets defaults, also of arguments without one in their class, which are then no longer required."""
        super().set_defaults(*args, **kwargs)
        for action in self._actions:
            action.required = action.required and action.default is None

    def error(self, message: str, ex: Optional[Exception] = None) -> NoReturn:
        """Raises a UserError in place of argparse's usage text."""
        raise UserError(explain_usage_error(message, self._flags())) from ex

    def _flags(self) -> List[str]:
        return [f"--{key}" for key, _ in self.get_defaults().items()]

    def _complete_switches(self, args: Sequence[str]) -> List[str]:
        """Gives `=true` to each yes/no flag that no value follows."""
        switches = {f"--{key}" for key, value in self.get_defaults().items() if isinstance(value, bool)}
        following = [*args[1:], "--"]
        return [
            f"{arg}=true" if arg in switches and after.startswith("--") else arg for arg, after in zip(args, following)
        ]


def explain_usage_error(message: str, flags: Sequence[str]) -> str:
    """Rewrites a message of argparse or jsonargparse as one line in plain words.

    Args:
        message: the message, any number of lines; one of an unknown kind is only brought onto one line.
        flags: all flags there are, to suggest one where a name is unknown.
    """
    text = " ".join(message.split())
    value_error = re.match(
        r'Parser key "([\w.]+)": (.*?)(?: Given value type: .*)?(?:Given value|Got value): ?(.*)', text
    )
    if value_error:
        return _explain_value(*value_error.groups())
    unknown = re.match(r"unrecognized arguments: ([^\s=]+)", text)
    if unknown:
        return _explain_unknown(unknown.group(1), flags, "")
    unknown_key = re.match(r"(?:Group '([\w.]+)' does not accept option|Option) '([\w.]+)'", text)
    if unknown_key:
        return _explain_unknown("--" + ".".join(filter(None, unknown_key.groups())), flags, " in the YAML file")
    missing = re.match(r"the following arguments are required: (.*)", text)
    if missing:
        names = ", ".join(f"--{name}" for name in missing.group(1).split(", "))
        return f"{names} must be given; --help explains each flag"
    text = re.sub(r'^Parser key "([\w.]+)":', r"--\1:", text)
    return re.sub(r"^argument (--[\w.]+):", r"\1:", text)


def _explain_value(key: str, expectation: str, value: str) -> str:
    choices = re.findall(r"Literal\[(.*?)\]", expectation)
    words = [f"one of {choice}".replace("'", "") for choice in choices]
    words += [TYPE_WORDS[name] for name in re.findall(r"<class '(\w+)'>", expectation) if name in TYPE_WORDS]
    expected = " or ".join(dict.fromkeys(words)) or expectation
    return f"--{key}: {value or 'an empty value'} cannot be used; expected {expected}"


def _explain_unknown(name: str, flags: Sequence[str], where: str) -> str:
    if not name.startswith("-"):
        return f"unexpected argument {name}; each value follows its flag, see --help"
    longer = [flag for flag in flags if flag.startswith(name)]
    close = longer or difflib.get_close_matches(name, flags, n=1)
    hint = f"did you mean {close[0]}?" if close else "see --help"
    return f"unknown flag {name}{where}; {hint}"
