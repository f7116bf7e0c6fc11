"""What values an option may have: its annotated type and, where it is a number, its range.

`fps: Annotated[int, Range(1, 1000)] = 7` is the one declaration of an option. The command's parser, the classes that
take it and the YAML files of models are checked against it.
"""

import collections.abc
import inspect
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Dict, Iterator, Literal, Optional, Set, Union, get_args, get_origin, get_type_hints

from gm.errors import UserError

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
LONGEST = 80  # characters of a value that an error line shows


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`, both included; with `multiple`, only its multiples."""

    low: float
    high: float
    multiple: int = 0

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high and not (self.multiple and value % self.multiple)

    def __repr__(self) -> str:  # what --help shows
        return f"{show(self.low)} to {show(self.high)}"


class OptionError(UserError):
    """An option that cannot have its value; the line starts with the option's name, before which a command puts its
    flags' prefix (:func:`flags_below`)."""


@dataclass
class Options:
    """A group of options, each a field of a dataclass, checked against its type when the group is made.

    Raises:
        OptionError: a value that its field cannot have.
    """

    def __post_init__(self) -> None:
        for name, annotation in _annotations(type(self)).items():
            expect(name, getattr(self, name), annotation)


@cache
def _annotations(group: type) -> Dict[str, Any]:
    return get_type_hints(group, include_extras=True)


@contextmanager
def flags_below(prefix: str) -> Iterator[None]:
    """Inside the block errors name options by their flags, which start with `prefix`."""
    try:
        yield
    except OptionError as error:
        raise UserError(f"{prefix}{error}") from error


def expect(name: str, value: Any, annotation: Any) -> None:
    """Raises an OptionError unless a value has an annotated type."""
    if not fits(value, annotation):
        raise OptionError(f"{name}: {show(value)} cannot be used; expected {describe(annotation, value=value)}")


def fits(value: Any, annotation: Any, limits: Optional[Range] = None) -> bool:
    """Whether a value has an annotated type, and is in its range; generic types are looked into.

    What cannot be told (no annotation, callables) is taken to fit.

    Args:
        limits: the range of numbers whose type has none.
    """
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return fits(value, args[0]) and all(value in item for item in args[1:] if isinstance(item, Range))
    if origin is Union:
        return any(fits(value, choice, limits) for choice in args)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in args)
    if origin in (list, tuple, collections.abc.Sequence):
        length_fits = origin is not tuple or (isinstance(value, (list, tuple)) and len(value) == len(args))
        return isinstance(value, (list, tuple)) and length_fits and all(fits(item, args[0], limits) for item in value)
    if origin is not None or annotation in (Any, inspect.Parameter.empty) or not isinstance(annotation, type):
        return True
    if annotation not in (int, float):
        return isinstance(value, annotation)
    number = isinstance(value, (int, float) if annotation is float else int) and not isinstance(value, bool)
    return number and (limits is None or value in limits)


def kinds_of(annotation: Any) -> Set[Any]:
    """What a value of an annotated type may be, without ranges: `bool`, `tuple` and so on."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Union:
        return {kind for choice in args for kind in kinds_of(choice)}
    return kinds_of(args[0]) if origin is Annotated else {origin or annotation}


def describe(annotation: Any, limits: Optional[Range] = None, value: Any = None) -> str:
    """An annotated type in a user's words; for the arguments see :func:`fits`.

    Args:
        value: what was given in its place, for which the nearest multiple is named.
    """
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return describe(args[0], next((item for item in args[1:] if isinstance(item, Range)), None), value)
    if origin is Union:
        return " or ".join(describe(choice, limits, value) for choice in args if choice is not type(None))
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}" if len(args) > 1 else str(args[0])
    if origin is collections.abc.Sequence:
        return f"a list, each item {describe(args[0], limits)}"
    if origin in (list, tuple):
        return f"a list such as {'[0.5,0.5]' if origin is tuple else '[1,2]'}, each item {describe(args[0], limits)}"
    word = WORDS.get(annotation, f"a {getattr(annotation, '__name__', annotation)}")
    if limits is None or annotation not in (int, float):
        return word
    if not limits.multiple:
        return f"{word} from {limits}"
    near = f", such as {_nearest(limits, value)}" if isinstance(value, int) else ""
    return f"a multiple of {limits.multiple} from {limits}{near}"


def _nearest(limits: Range, value: int) -> int:
    nearest = (2 * value + limits.multiple) // (2 * limits.multiple) * limits.multiple
    return int(min(max(nearest, limits.low), limits.high))


def show(value: Any) -> str:
    """A value as a command line has it, shortened if it is long."""
    if isinstance(value, (list, tuple)):
        text = f"[{','.join(map(show, value))}]"
    elif isinstance(value, float):
        text = f"{value:.12g}"
    else:
        text = "an empty value" if value in ("", None) else " ".join(str(value).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
