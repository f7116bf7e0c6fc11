"""YAML to objects: `target` names a class, `params` its arguments.

A parameter `x_config` (or `x`) that holds a `target` is built first and passed as `x`; lists and dictionaries are
searched likewise. Where a class lists a parameter in its `DEFERRED`, it gets a :class:`Recipe` instead, and builds the
part when it needs it. The reference toolkit's own target paths and options are understood (:mod:`gm.reference_yaml`).
"""

import importlib
import inspect
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from gm.errors import UserError
from gm.reference_yaml import our_options, our_target

SUFFIX = "_config"


class Recipe:
    """A part that is built when called, as often as it is called."""

    def __init__(self, node: Mapping[str, Any]) -> None:
        self.node = node

    def __call__(self, **arguments: Any) -> Any:
        return instantiate(self.node, **arguments)


def load_config(path: Union[str, Path], overrides: Optional[Sequence[str]] = None, flag: str = "--config") -> Dict:
    """Reads a YAML file, with interpolations resolved, as plain dictionaries and lists.

    A file may name others under `base` (one path or a list, relative to itself): they are merged in order, and the
    file's own values over them.

    Args:
        overrides: `dotted.key=value` strings, applied last.
        flag: what named the file, for the error line.

    Raises:
        UserError: the file is missing, is no YAML, or has an unresolvable interpolation.
    """
    try:
        config = _merged(Path(path), flag)
        if overrides:
            config = OmegaConf.merge(config, OmegaConf.from_dotlist(list(overrides)))
        return OmegaConf.to_container(config, resolve=True)
    except (OmegaConfBaseException, YAMLError) as error:
        line = str(error).strip().splitlines()[0]
        raise UserError(f"{flag}: {path} is no valid configuration: {line}") from error


def _merged(path: Path, flag: str):
    try:
        config = OmegaConf.load(path)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"{flag}: no file at {path}; configs/ has the ones that come with the project") from error
    except (PermissionError, UnicodeDecodeError) as error:
        raise UserError(f"{flag}: cannot read {path}: {error}") from error
    if not OmegaConf.is_dict(config):
        raise UserError(f"{flag}: {path} holds no mapping at its top level")
    bases = config.pop("base", [])
    for base in [bases] if isinstance(bases, str) else bases:
        config = OmegaConf.merge(_merged(path.parent / base, flag), config)
    return config


def instantiate(node: Mapping[str, Any], **arguments: Any) -> Any:
    """Builds what a `target`/`params` node describes.

    Args:
        arguments: added to, or in place of, the node's params.

    Raises:
        UserError: no such class, or options that it does not have.
    """
    if "target" not in node:
        raise UserError(f"the configuration has no `target` in {sorted(node)}")
    cls = find_class(our_target(node["target"]))
    params = our_options(node["target"], dict(node.get("params") or {}))
    deferred: List[str] = getattr(cls, "DEFERRED", [])
    built = {}
    for key, value in params.items():
        name = key[: -len(SUFFIX)] if key.endswith(SUFFIX) else key
        built[name] = Recipe(value) if name in deferred and value is not None else _build(value)
    built.update(arguments)
    _check_options(cls, node["target"], built)
    return cls(**built)


def find_class(target: str) -> Any:
    """The class (or function) at a dotted path.

    Raises:
        UserError: there is none.
    """
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"the configuration's target {target!r} is not a class of this project") from error


def _build(value: Any) -> Any:
    if isinstance(value, Mapping):
        if "target" in value:
            return instantiate(value)
        return {key: _build(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_build(item) for item in value]
    return value


def _check_options(cls: Any, target: str, options: Mapping[str, Any]) -> None:
    parameters = inspect.signature(cls).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    unknown = sorted(set(options) - set(parameters))
    if unknown:
        raise UserError(f"the configuration's {target} has no option {', '.join(unknown)}; it has {', '.join(parameters)}")
    missing = [
        name for name, parameter in parameters.items() if parameter.default is parameter.empty and name not in options
    ]
    if missing:
        raise UserError(f"the configuration's {target} lacks {', '.join(missing)}")
