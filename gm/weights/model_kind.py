"""Which model a checkpoint is of, by the names and shapes in its header: nothing is built, no tensor is read.

A model is a YAML file in `configs/`. Its `weights` list names the published files that it is for. A model that others
share their network with (svd, svd_xt) is told from them by the file's name, its text entries, or its hash.
"""

import re
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from gm.config.factory import load_config, model_config
from gm.errors import UserError
from gm.files import PathLike
from gm.weights.checkpoint import file_sha256, open_checkpoint
from gm.weights.names import kind_of_names
from gm.weights.tensor_source import TensorInfo, TensorSource

PROJECT = Path(__file__).parents[2]
CONFIGS = PROJECT / "configs"
BUNDLED = PROJECT / "checkpoints"  # where a model's published file is looked for
TYPE_WORDS = re.compile(r"(fp|bf|f|float)(8|16|32)|e[45]m[23](fn)?|[0-9a-f]{6,64}|pruned|converted|comfyui|ckpt")

# The tensors that tell the widths, by their names in a whole checkpoint, and in a diffusers folder or one of its files.
_FIRST_CONV = re.compile(r"(model\.diffusion_model\.input_blocks\.0\.0|(unet/|^)conv_in)\.weight$")
_VECTOR = re.compile(r"(model\.diffusion_model\.label_emb\.0\.0|(unet/|^)add_embedding\.linear_1)\.weight$")
_CONTEXT = re.compile(r"^(model\.diffusion_model|unet/|(down|mid|up)_block).*\.attn2\.to_k\.weight$")
_LATENT = re.compile(r"^(first_stage_model\.|vae/)decoder\.conv_in\.weight$")
_TEMPORAL = re.compile(r"^(model\.diffusion_model|unet/|(down|mid|up)_block).*\.(time_stack|temporal_res_block)\.")
_TEMPORAL_DECODER = re.compile(r"^(first_stage_model|vae/).*\.(time_stack|temporal_res_block)\.")


class Architecture(NamedTuple):
    """What models differ in; None where a file, such as a UNet alone, does not tell."""

    in_channels: Optional[int]
    model_channels: Optional[int]
    context_dim: Optional[int]
    vector_dim: Optional[int]  # 0 without a label embedding
    temporal: Optional[bool]
    latent_channels: Optional[int]
    temporal_decoder: Optional[bool]

    def fits(self, other: "Architecture") -> bool:
        """Whether both may be the same model's: whatever both tell is equal."""
        return all(mine is None or theirs is None or mine == theirs for mine, theirs in zip(self, other))


class KnownModel(NamedTuple):
    """A model that `configs/` describes."""

    path: Path
    config: Mapping[str, Any]
    architecture: Architecture

    @property
    def name(self) -> str:
        """The YAML file's name without its suffix: "svd"."""
        return self.path.stem

    @property
    def files(self) -> Dict[str, str]:
        """Published file -> its SHA-256, "" where it is not known."""
        return published_files(self.config)

    @property
    def num_frames(self) -> Optional[int]:
        """Frames that the model was trained for."""
        return self.config["model"].get("params", {}).get("num_frames")


def published_files(config: Mapping[str, Any]) -> Dict[str, str]:
    """The published files that a model's YAML file is for, by their names alone -> their SHA-256, "" if not known."""
    entries = config.get("weights")
    entries = [entry for entry in entries if isinstance(entry, Mapping)] if isinstance(entries, list) else []
    return {Path(str(entry["file"])).name: str(entry.get("sha256", "")) for entry in entries if "file" in entry}


def architecture_of(info: Mapping[str, TensorInfo]) -> Architecture:
    """A checkpoint's, from the names and shapes of its tensors."""

    def find(pattern: "re.Pattern[str]") -> Optional[Tuple[int, ...]]:
        return next((info[name].shape for name in info if pattern.search(name)), None)

    def size(shape: Optional[Sequence[int]], axis: int) -> Optional[int]:
        return shape[axis] if shape and len(shape) > axis else None

    conv, context, vector, latent = map(find, (_FIRST_CONV, _CONTEXT, _VECTOR, _LATENT))
    return Architecture(
        in_channels=size(conv, 1),
        model_channels=size(conv, 0),
        context_dim=size(context, 1),
        vector_dim=None if conv is None else size(vector, 1) or 0,
        temporal=None if conv is None else find(_TEMPORAL) is not None,
        latent_channels=size(latent, 1),
        temporal_decoder=None if latent is None else find(_TEMPORAL_DECODER) is not None,
    )


def architecture_in(config: Mapping[str, Any]) -> Architecture:
    """The one that a model's YAML file describes, also in the reference toolkit's and in sgm's terms."""
    engine = _params(config.get("model"))
    network, stage = engine.get("network_config"), _params(engine.get("first_stage_config"))
    unet, decoder = _params(network), stage.get("decoder_config")
    coder = _params(decoder) or _params({"params": stage.get("ddconfig")})
    return Architecture(
        in_channels=unet.get("in_channels"),
        model_channels=unet.get("model_channels"),
        context_dim=unet.get("context_dim"),
        vector_dim=unet.get("adm_in_channels") or 0,
        temporal=_class_name(network).startswith("Video"),
        latent_channels=coder.get("z_channels"),
        temporal_decoder=_class_name(decoder).startswith("Video"),
    )


@lru_cache(maxsize=1)
def known_models(folder: Path = CONFIGS) -> List[KnownModel]:
    """Every model that has a YAML file in a folder, sorted by name."""
    configs = {path: load_config(path) for path in sorted(folder.glob("*.yaml"))}
    return [KnownModel(path, config, architecture_in(config)) for path, config in configs.items() if "model" in config]


def find_model(source: TensorSource, flags: str = "--SVD.", num_frames: Optional[int] = None) -> KnownModel:
    """The model of a checkpoint.

    Args:
        source: the open checkpoint.
        flags: what the command's flags start with, for error lines.
        num_frames: the frames that the user asked for, which tell models of one network apart as well.

    Raises:
        UserError: none that `configs/` describes, or several.
    """
    have = architecture_of(source.info)
    fitting = [] if have.model_channels is None else [m for m in known_models() if m.architecture.fits(have)]
    if not fitting:
        what = kind_of_names(source.info) or f"no model that configs/ describes ({_in_words(have)})"
        raise UserError(f"{flags}checkpoint: {source.path} is {what}; name its YAML file, if any, with {flags}config")
    for narrow in (_by_name, _by_hash):
        if len(fitting) > 1:
            fitting = narrow(fitting, source) or fitting
        if len(fitting) > 1 and num_frames and narrow is _by_name:
            return min(fitting, key=lambda model: abs((model.num_frames or 0) - num_frames))
    if len(fitting) > 1:
        choices = " or ".join(f"{model.num_frames} ({model.name})" for model in fitting if model.num_frames)
        remedy = f"{flags}num_frames={choices}, or " if choices else ""
        raise UserError(
            f"{flags}checkpoint: {source.path} may be {names_of(fitting)}, which share one network, and its name does "
            f"not tell; give {remedy}{flags}config"
        )
    return fitting[0]


def choose_files(
    config: Optional[PathLike],
    checkpoint: Optional[PathLike],
    default: str,
    flags: str,
    num_frames: Optional[int] = None,
) -> Tuple[Path, Path]:
    """The two files of a model where one of them, both or none is named: YAML file and weights, which fit each other.

    Args:
        config, checkpoint: what the flags of these names say. A path is below the working folder or the project's; `~`
            is the home folder.
        default: the name of the model where neither is named.
        flags, num_frames: see :func:`find_model`.

    Raises:
        UserError: a file is missing or cannot be read, no model is found, or the files do not fit.
    """
    if checkpoint is None:
        config = config or CONFIGS / f"{default}.yaml"
        names = list(published_files(model_config(in_project(config), flag=f"{flags}config")))
        checkpoint = next((BUNDLED / name for name in names if (BUNDLED / name).exists()), None)
        if checkpoint is None:
            needed = " or ".join(names) or "the weights that it was written for"
            raise UserError(f"{flags}checkpoint: {config} needs {needed}: name that file (README, Weights)")
    weights = in_project(checkpoint)
    if not weights.exists():
        raise UserError(f"{flags}checkpoint: there is no file {weights}; name the weights (README, Weights)")
    try:
        source = open_checkpoint(weights)
    except UserError as error:
        raise UserError(f"{flags}checkpoint: {error}") from error
    with source:
        kind = kind_of_names(source.info)
        if kind:
            raise UserError(f"{flags}checkpoint: {weights} is {kind}")
        if config is None:
            found = find_model(source, flags, num_frames)
            own = next(model for model in known_models() if model.name == default)
            if found.architecture.temporal != own.architecture.temporal:
                makes = "videos" if found.architecture.temporal else "pictures"
                raise UserError(f"{flags}checkpoint: {weights} is {found.name}, which makes {makes}; name another")
            return found.path, weights
        path = in_project(config)
        require_fit(source, model_config(path, flag=f"{flags}config"), path, flags)
    return path, weights


def in_project(path: PathLike) -> Path:
    """`path`, or the file of that name in the project's folder if only that exists."""
    given, own = Path(path).expanduser(), PROJECT / path
    return own if own.exists() and not given.exists() else given


def portable(path: PathLike) -> str:
    """A path that :func:`in_project` finds from any working folder: below the project, the home folder, or the root."""
    path = Path(path).resolve()
    for folder, start in ((PROJECT, ""), (Path.home(), "~/")):
        if path.is_relative_to(folder):
            return start + path.relative_to(folder).as_posix()
    return str(path)


def require_fit(source: TensorSource, config: Mapping[str, Any], path: Path, flags: str = "--SVD.") -> None:
    """Refuses, before anything is built, a checkpoint of a known model that a configuration is not of.

    Others are left to :func:`gm.weights.names.compare_names`, when the configuration has been built.

    Raises:
        UserError: what the checkpoint is, and what the configuration needs.
    """
    have, wanted = architecture_of(source.info), architecture_in(config)
    fitting = [] if have.fits(wanted) else [model for model in known_models() if model.architecture.fits(have)]
    if not fitting or have.model_channels is None:
        return
    files = published_files(config).keys() - fitting[0].files.keys()  # a file may inherit them with its base
    needed = " or ".join(sorted(files)) or f"another ({_in_words(wanted)})"
    also = f"for this file name {flags}config={portable(fitting[0].path)}"
    if have.temporal != wanted.temporal:
        also = f"{'image_to_video.py' if have.temporal else 'svd_tools/text_to_image.py'} runs it"
    raise UserError(f"{flags}checkpoint: {source.path} is {names_of(fitting)}; {path} needs {needed}; {also}")


def names_of(models: Iterable[KnownModel]) -> str:
    """ "svd or svd_xt"."""
    return " or ".join(model.name for model in models)


def _by_name(models: Sequence[KnownModel], source: TensorSource) -> List[KnownModel]:
    """Those with a published file of the checkpoint's name, or of the name in its text entry `source`, which convert.py
    and train.py write; whatever these say of types and hashes."""

    def words(stem: str) -> str:
        return "_".join(word for word in re.split(r"[-_. ]+", stem.lower()) if not TYPE_WORDS.fullmatch(word))

    stems = {words(Path(name).stem) for name in (source.path.name, source.metadata.get("source", ""))} - {""}
    return [model for model in models if stems & {words(Path(file).stem) for file in model.files}]


def _by_hash(models: Sequence[KnownModel], source: TensorSource) -> List[KnownModel]:
    """Those with a published file of the checkpoint's hash; published files are fp32, so others need not be read."""
    if {info.dtype for info in source.info.values()} != {"F32"}:
        return []
    digest = file_sha256(source.path)
    return [model for model in models if digest in model.files.values()]


def _params(node: Any) -> Mapping[str, Any]:
    params = node.get("params") if isinstance(node, Mapping) else None
    return params if isinstance(params, Mapping) else {}


def _class_name(node: Any) -> str:
    return str(node.get("target", "")).rpartition(".")[2] if isinstance(node, Mapping) else ""


def _in_words(architecture: Architecture) -> str:
    if architecture.model_channels is None:
        return "it has no UNet"
    kind = "video" if architecture.temporal else "image"
    return (
        f"{kind} UNet, {architecture.in_channels} input channels, width {architecture.model_channels}, context "
        f"{architecture.context_dim}"
    )
