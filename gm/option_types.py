"""Whether a value from a YAML file suits the parameter that it is for."""

import collections.abc
import inspect
from typing import Any, Union, get_args, get_origin

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value has a parameter's annotated type; of generic types, sequences and unions are looked into.

    What cannot be told (no annotation, callables) is taken to fit.
    """
    origin = get_origin(annotation)
    if origin is Union:
        return any(fits(value, choice) for choice in get_args(annotation))
    if origin is collections.abc.Sequence:
        return isinstance(value, (list, tuple)) and all(fits(item, get_args(annotation)[0]) for item in value)
    if origin is not None or annotation is inspect.Parameter.empty or not isinstance(annotation, type):
        return True
    if annotation in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if annotation is float else annotation)


def describe(annotation: Any) -> str:
    """A parameter's type in a user's words."""
    origin = get_origin(annotation)
    if origin is Union:
        return " or ".join(describe(choice) for choice in get_args(annotation) if choice is not type(None))
    if origin is collections.abc.Sequence:
        return "a list, each item " + describe(get_args(annotation)[0])
    return WORDS.get(annotation, f"a {getattr(annotation, '__name__', annotation)}")
