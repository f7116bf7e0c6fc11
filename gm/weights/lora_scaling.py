"""How strongly the layers of a LoRA act: where programs keep alpha, beside the tensors named `….alpha`.

PEFT keeps it in `adapter_config.json` beside the weights, diffusers in the text entry `lora_adapter_metadata`: one for
all layers (`lora_alpha`), others for some (`alpha_pattern`), and whether a branch is scaled by α/√r in place of α/r
(`use_rslora`, Kalajdzievski 2023). Plain files keep it nowhere.
"""

import re
from math import sqrt
from pathlib import Path
from typing import Any, Dict, Mapping, NamedTuple, Optional, Sequence

from gm.errors import UserError
from gm.files import parse_json, read_text, reason

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"  # in a folder of PEFT's
ENTRY = "lora_adapter_metadata"  # diffusers' text entry: a JSON object, "unet.lora_alpha" and so on
COMPONENTS = ("unet.", "text_encoder.", "text_encoder_2.", "")
PREFIX = re.compile(r"^(unet\.|text_encoder(_2)?\.)?(base_model\.model\.)?")


class Scaling(NamedTuple):
    """What a file says of all its layers, or what takes the place of that.

    Attributes:
        options: PEFT's, by component ("unet." and so on, "" for a file of one).
        source: where they are from, in words.
    """

    options: Mapping[str, Mapping[str, Any]]
    source: str

    def alpha(self, layer: str, rank: int) -> float:
        """The α of a layer, as the file names it, for a branch that is scaled by α/r.

        Raises:
            UserError: a value that is no number.
        """
        component = next(name for name in COMPONENTS if layer.startswith(name))
        options = self.options.get(component) or self.options.get("") or {}
        bare = PREFIX.sub("", layer)
        patterns = options.get("alpha_pattern") or {}
        alpha = next((value for key, value in patterns.items() if _matches(key, bare)), options.get("lora_alpha", rank))
        try:
            return float(alpha) * (sqrt(rank) if options.get("use_rslora") else 1)
        except (TypeError, ValueError) as error:
            raise UserError(f"{self.source} has the alpha {alpha!r} for {layer}, which is no number") from error

    def note(self, alphas: Sequence[float]) -> str:
        """What alpha those layers got that have none among the tensors, in words; "" if all have."""
        if not alphas:
            return ""
        low, high = min(alphas), max(alphas)
        shown = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        doubt = "" if self.options else "; the file keeps none: give alpha if it was trained with another"
        return f"alpha is {shown}, from {self.source}{doubt}"


def read_scaling(path: Path, metadata: Mapping[str, str], alpha: Optional[float]) -> Scaling:
    """What is known of a LoRA's alpha beside its tensors.

    Args:
        path: the weights' file.
        metadata: its text entries.
        alpha: what the user says, for a file that does not.

    Raises:
        UserError: a JSON text that cannot be read, or an alpha from two sides.
    """
    config = path.with_name(CONFIG)
    if path.name == WEIGHTS and config.exists():
        found = Scaling({"": _object(_text(config), str(config))}, str(config))
    elif ENTRY in metadata:
        source = f"{path}'s {ENTRY}"
        found = Scaling(_by_component(_object(metadata[ENTRY], source)), source)
    elif alpha is not None:
        return Scaling({"": {"lora_alpha": alpha}}, "what was given")
    else:
        return Scaling({}, "the rank")
    if alpha is not None:
        raise UserError(f"{found.source} says what alpha is; leave yours ({alpha:g}) out")
    return found


def weights_file(path: Path) -> Path:
    """The file with a LoRA's tensors: itself, or the one in a folder of PEFT's."""
    return path / WEIGHTS if path.is_dir() else path


def _matches(key: str, layer: str) -> bool:
    """Whether a pattern of PEFT's is a layer's: the end of its name, or with ^ the whole from the start."""
    return re.match(key if key.startswith("^") else rf"(.*\.)?({key})$", layer) is not None


def _by_component(options: Mapping[str, Any]) -> Dict[str, Dict[str, Any]]:
    """ "unet.lora_alpha": 8 -> "unet.": {"lora_alpha": 8}."""
    parts: Dict[str, Dict[str, Any]] = {}
    for key, value in options.items():
        component = next(name for name in COMPONENTS if key.startswith(name))
        parts.setdefault(component, {})[key[len(component) :]] = value
    return parts


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text") from error


def _object(text: str, what: str) -> Dict[str, Any]:
    try:
        value = parse_json(text)
    except ValueError as error:
        raise UserError(f"{what} is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{what} is no JSON object")
    return value
