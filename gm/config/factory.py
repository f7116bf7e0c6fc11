"""YAML to objects: `target` names a class, `params` its arguments.

A parameter `x_config` (or `x`) that holds a `target` is built first and passed as `x`; lists and dictionaries are
searched likewise. Where a class lists a parameter in its `DEFERRED`, it gets a :class:`LazyConfig` instead, and
builds the part when it needs it. The reference toolkit's own target paths and options are understood
(:mod:`gm.config.targets`).
"""

import importlib
import inspect
import os
import re
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union, get_args, get_origin

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from gm.config.targets import CLASSES, LIMITS, WHOLE_NUMBERS, our_options, our_target
from gm.config.values import describe, fits, show
from gm.errors import UserError
from gm.files import read_text, reason

SUFFIX = "_config"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MOST_BYTES = 1 << 20  # of a file
MOST_FILES = 32  # that a file is made of, through `base`
MOST_DIGITS = 1000  # of a whole number; Python converts some 4000
MOST_NODES = 100_000  # of a file, its aliases written out


class LazyConfig:
    """A part that is built when called, as often as it is called.

    Args:
        node: its target and params.
        source: the flag and file that describe it, for error lines.
    """

    def __init__(self, node: Mapping[str, Any], source: str = "") -> None:
        self.node, self.source = node, source

    def __call__(self, **arguments: Any) -> Any:
        return instantiate(self.node, self.source, **arguments)


def load_model(path: Union[str, Path], overrides: Optional[Sequence[str]] = None, flag: str = "--config") -> Any:
    """Builds what a YAML file describes under `model`; for the arguments see :func:`load_config`.

    Raises:
        UserError: the file cannot be used; the line names the flag, the file and what is wrong with it.
    """
    return instantiate(model_config(path, overrides, flag)["model"], f"{flag}: {path}: ")


def model_config(path: Union[str, Path], overrides: Optional[Sequence[str]] = None, flag: str = "--config") -> Dict:
    """A model's YAML file, of which nothing is built; arguments and errors as :func:`load_model`."""
    config = load_config(path, overrides, flag)
    if not isinstance(config.get("model"), dict):
        raise UserError(f"{flag}: {path} describes no `model`; configs/svd.yaml shows how")
    return config


def load_config(path: Union[str, Path], overrides: Optional[Sequence[str]] = None, flag: str = "--config") -> Dict:
    """Reads a YAML file, with interpolations resolved, as plain dictionaries and lists.

    A file may name others under `base` (one path or a list, relative to itself): they are merged in order, and the
    file's own values over them.

    Args:
        overrides: `dotted.key=value` strings, applied last.
        flag: what named the file, for the error line.

    Raises:
        UserError: the file is missing, is no YAML, has an unresolvable interpolation, or is its own base.
    """
    try:
        config = _merged(Path(path), flag, [])
        if overrides:
            config = OmegaConf.merge(config, OmegaConf.from_dotlist(list(overrides)))
            _refuse_resolvers(overrides, path, flag)
        return OmegaConf.to_container(config, resolve=True)
    except (OmegaConfBaseException, TypeError) as error:  # a TypeError where a list and a mapping are merged
        line = str(error).strip().splitlines()[0]
        raise UserError(f"{flag}: {path} is no valid configuration: {line}") from error


def _merged(path: Path, flag: str, read: List[Path], above: Tuple[Path, ...] = ()) -> DictConfig:
    """A file over its bases; `read` collects all files."""
    own = _read(path, flag)
    if path.resolve() in above:
        raise UserError(f"{flag}: {path} is its own `base`, through {', '.join(file.name for file in above)}")
    read.append(path)
    if len(read) > MOST_FILES:
        raise UserError(f"{flag}: {path}: more than {MOST_FILES} files through `base`")
    bases = own.pop("base", OmegaConf.create([]))
    files = [path.parent / os.path.expanduser(str(base)) for base in (bases if OmegaConf.is_list(bases) else [bases])]
    return OmegaConf.merge(*(_merged(file, flag, read, (*above, path.resolve())) for file in files), own)


def _read(path: Path, flag: str) -> DictConfig:
    """One file's mapping, as it stands."""
    text = yaml_text(path, flag)
    try:
        config = OmegaConf.load(StringIO(text))
    except YAMLError as error:  # a duplicate key
        raise UserError(f"{flag}: {path} is no valid YAML: {_yaml_problem(error)}") from error
    except OSError:  # OmegaConf's, for a number alone
        config = None
    if not OmegaConf.is_dict(config):
        raise UserError(f"{flag}: {path} holds no mapping at its top level")
    _refuse_resolvers(OmegaConf.to_container(config, resolve=False), path, flag)
    return config


def yaml_text(path: Union[str, Path], flag: str) -> str:
    """The text of a YAML file of a size that can be built, its aliases written out.

    Raises:
        UserError: no such file, no text, no YAML, or too large.
    """
    try:
        text = read_text(path, MOST_BYTES)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"{flag}: no file at {path}; configs/ has the ones that come with the project") from error
    except OSError as error:
        raise UserError(f"{flag}: cannot read {path}: {reason(error)}") from error
    try:
        if _node_count(yaml.compose(text, Loader=LOADER), {}) > MOST_NODES:
            raise UserError(f"{flag}: {path} has more than {MOST_NODES} values, its aliases written out")
    except YAMLError as error:
        raise UserError(f"{flag}: {path} is no valid YAML: {_yaml_problem(error)}") from error
    except RecursionError as error:  # PyYAML without its C part, or aliases of themselves
        raise UserError(f"{flag}: {path} is nested too deeply, or holds itself") from error
    return text


def _node_count(node: Optional[yaml.Node], known: Dict[int, int]) -> int:
    """How many values a YAML node holds, those of its aliases counted each time; `known` are the counted ones."""
    if node is None or isinstance(node, yaml.ScalarNode):
        if node and node.tag.endswith(":int") and len(node.value) > MOST_DIGITS:
            raise YAMLError(f"a number has more than {MOST_DIGITS} digits")
        return 1
    if id(node) not in known:
        pairs = isinstance(node, yaml.MappingNode)
        children = [child for pair in node.value for child in pair] if pairs else node.value
        known[id(node)] = 1 + sum(_node_count(child, known) for child in children)
    return known[id(node)]


def _refuse_resolvers(value: Any, path: Union[str, Path], flag: str) -> None:
    """Interpolations are keys of the same configuration, `${a.b}`; OmegaConf's functions, such as those that read the
    environment, are not called.

    Raises:
        UserError: an interpolation with a colon, which is a function's.
    """
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    if isinstance(value, (list, tuple)):
        for item in value:
            _refuse_resolvers(item, path, flag)
    elif isinstance(value, str) and "${" in value and ":" in re.sub(r"\$\{[^${}:]*\}", "", value):
        raise UserError(f"{flag}: {path}: interpolations are of keys, such as ${{model.params.width}}; no functions")


def _yaml_problem(error: YAMLError) -> str:
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return " ".join(str(error).split())


def instantiate(node: Mapping[str, Any], source: str = "", /, **arguments: Any) -> Any:
    """Builds what a `target`/`params` node describes.

    Args:
        source: what error lines start with.
        arguments: added to, or in place of, the node's params.

    Raises:
        UserError: no such class, options that it does not have, or values that they cannot have.
    """
    try:
        return _instantiate(node, source, arguments)
    except UserError as error:
        raise UserError(f"{source}{error}") from error


def _instantiate(node: Mapping[str, Any], source: str, arguments: Mapping[str, Any]) -> Any:
    target, params = _parts(node)
    cls = find_class(our_target(target))
    deferred: List[str] = getattr(cls, "DEFERRED", [])
    built = {}
    try:
        for key, value in our_options(target, params).items():
            name = key[: -len(SUFFIX)] if key.endswith(SUFFIX) else key
            lazy = name in deferred and value is not None
            built[name] = LazyConfig(value, source) if lazy else _build(value, source)
        built.update(arguments)
        _check_options(cls, target, built)
        return cls(**built)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # numbers that do not go together
        line = " ".join(str(error).split())
        raise UserError(f"the configuration's {target} cannot be built from its options: {line}") from error


def _check_kind(part: LazyConfig, annotation: Any, problem: str) -> None:
    """A part that is built later is of the class that an annotation names: `Annotated[LazyConfig, UNet]`."""
    target = _parts(part.node)[0]
    for kind in get_args(annotation)[1:] if get_origin(annotation) is Annotated else ():
        if not issubclass(find_class(our_target(target)), kind):
            raise UserError(f"{problem}={target}; expected a {kind.__name__}")


def _parts(node: Mapping[str, Any]) -> Tuple[str, Dict[str, Any]]:
    """A node's target and a copy of its params."""
    if not isinstance(node, Mapping) or not isinstance(node.get("target"), str):
        raise UserError(f"the configuration needs `target: package.module.Class` in {node}")
    params = node.get("params") or {}
    if not isinstance(params, Mapping) or not all(isinstance(key, str) for key in [*node, *params]):
        wanted = "a mapping under `params`, whose keys are words"
        raise UserError(f"the configuration's {node['target']} needs {wanted}, not {params!r}")
    unknown = set(node) - {"target", "params"}
    if unknown:
        names = ", ".join(sorted(unknown))
        raise UserError(f"the configuration has {names} beside the target {node['target']}, not under its params")
    return node["target"], dict(params)


def find_class(target: str) -> Any:
    """The class at a dotted path, which has to be one of :data:`gm.config.targets.CLASSES`: nothing else is imported.

    Raises:
        UserError: it is not.
    """
    if target not in CLASSES:
        raise UserError(f"the configuration's target {target!r} is not a class of this project that it may name")
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _build(value: Any, source: str) -> Any:
    if isinstance(value, Mapping):
        if "target" in value:
            return _instantiate(value, source, {})
        return {key: _build(item, source) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_build(item, source) for item in value]
    return value


def _check_options(cls: Any, target: str, options: Mapping[str, Any]) -> None:
    parameters = inspect.signature(cls).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    unknown = sorted(set(options) - set(parameters))
    if unknown:
        names = ", ".join(unknown)
        raise UserError(f"the configuration's {target} has no option {names}; it has {', '.join(parameters)}")
    missing = [name for name, given in parameters.items() if given.default is given.empty and name not in options]
    if missing:
        raise UserError(f"the configuration's {target} lacks {', '.join(missing)}")
    for name, value in options.items():
        annotation, limits = parameters[name].annotation, LIMITS.get(name, WHOLE_NUMBERS)
        if isinstance(value, LazyConfig):
            _check_kind(value, annotation, f"the configuration's {target} cannot have {name}")
        elif value is not parameters[name].default and not fits(value, annotation, limits):
            wanted = describe(annotation, limits, value)
            raise UserError(f"the configuration's {target} cannot have {name}={show(value)}; expected {wanted}")

